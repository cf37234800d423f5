"""What raw values of label files mean."""
