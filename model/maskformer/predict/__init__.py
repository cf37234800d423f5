"""Segment images without ground truth, and write the results for people and programs."""
