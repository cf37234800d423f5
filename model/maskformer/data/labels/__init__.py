"""Mapping of the raw values in label files to classes and objects."""
