"""How good predictions are: mIoU and PQ."""
