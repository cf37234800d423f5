"""Check the images and labels of a data set by reading them."""
