"""Kernels for mask-classification models: the public names."""

from mfkernels.assignment import (
    assignment_to_indices,
    batch_linear_assignment,
    batch_linear_assignment_with_status,
    linear_sum_assignment,
)
from mfkernels.backend import explain, use_backend

__version__ = "0.1.0"

__all__ = [
    "assignment_to_indices",
    "batch_linear_assignment",
    "batch_linear_assignment_with_status",
    "explain",
    "linear_sum_assignment",
    "use_backend",
]
