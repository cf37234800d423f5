"""Measure the quality of predictions: mIoU and PQ."""
