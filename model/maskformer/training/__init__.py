"""The training loop, its parts and the files that it writes."""
