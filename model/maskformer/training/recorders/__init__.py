"""Record the figures of a run: with TensorBoard, and with other trackers through accelerate."""
