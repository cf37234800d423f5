"""Segments images that have no ground truth, and writes what people and programs want to read."""
