"""Recording the metrics of a run with TensorBoard, or with other trackers through accelerate."""
