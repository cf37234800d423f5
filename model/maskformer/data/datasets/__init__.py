"""The formats of data sets, one module per format."""
