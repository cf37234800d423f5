"""Means over the processes that train together, which so weigh what one process would."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from mfkernels.targets import SegmentTargets


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of `value`, which is overwritten; `value` itself without other processes."""
    if _in_parallel():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value


def mean_num_masks(targets: SegmentTargets) -> Tensor:
    """Segments per process, averaged over all processes, at least 1; 0-dim, on the device."""
    if not _in_parallel():
        return torch.full((), max(targets.num_segments, 1.0), device=targets.device)
    count = torch.full((), float(targets.num_segments), device=targets.device)
    return mean_over_processes(count).clamp(min=1)


def _in_parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized()
