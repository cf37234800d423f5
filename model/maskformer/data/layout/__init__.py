"""Find out how a folder of images and labels is laid out, for `maskformer init`."""
