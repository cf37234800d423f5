"""What the images and labels of a data set show, seen by reading them."""
