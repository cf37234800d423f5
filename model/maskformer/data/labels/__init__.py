"""The meaning of the raw values in label files."""
