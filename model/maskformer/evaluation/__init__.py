"""Metrics of predictions: mIoU, PQ and mask AP."""
