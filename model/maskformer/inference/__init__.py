"""From images to a network input, and from outputs to predictions."""
