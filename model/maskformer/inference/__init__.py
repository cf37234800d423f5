"""Prepare images for the network, and convert its outputs to predictions."""
