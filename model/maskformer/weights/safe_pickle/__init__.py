"""Reading pickled files without running code in them."""
