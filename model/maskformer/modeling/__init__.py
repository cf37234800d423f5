"""The architectures with their parts, losses and outputs."""
