"""Prediction for images without ground truth, written as pictures and as machine-readable files."""
