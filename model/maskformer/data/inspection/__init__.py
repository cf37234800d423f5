"""Checks of a data set that read its images and labels."""
