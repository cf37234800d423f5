"""Detection of the layout of a folder of images and labels, for `maskformer init`."""
