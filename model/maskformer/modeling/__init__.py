"""The architectures, their parts and their loss."""
