"""Conversion of official archives of data sets that cannot be read as they are."""
