"""Who records the figures of a run: TensorBoard, and others through accelerate."""
