"""Averages over the processes of a distributed run, so that it computes what one process would."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from mfkernels.targets import SegmentTargets


def mean_over_processes(value: Tensor) -> Tensor:
    """Average `value` over all processes, in place; without several processes, return it as is."""
    if in_parallel():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value


def mean_num_masks(*targets: SegmentTargets, device: torch.device | None = None) -> Tensor:
    """Return the mean number of segments, at least 1; 0-dim float32, on the targets' device.

    The mean is over the given targets (one per micro-batch, if gradients are accumulated) and over
    all processes.
    """
    device = targets[0].device if device is None else device
    mean = sum(part.num_segments for part in targets) / len(targets)
    if not in_parallel():
        mean = max(mean, 1.0)
    # Always float32, whatever the default dtype: bfloat16 is not exact for integers above 256.
    value = torch.full((), mean, dtype=torch.float32, device=device)
    return mean_over_processes(value).clamp(min=1) if in_parallel() else value


def in_parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized()
