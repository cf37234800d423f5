"""Group norm in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CHANNELS_LAST_IS_SAFE: bool = torch.__version__ >= "2.14"  # a TorchVersion, not a plain string
"""Earlier versions fail for channels-last maps in forward mode and in `vmap`; on a CPU, the
backward pass crashes the process if the maps need no gradient but the parameters do."""


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, relu: bool
) -> Tensor:
    """Normalise `x [B, C, h, w]`, then apply ReLU if `relu`."""
    if not _CHANNELS_LAST_IS_SAFE:
        x = x.contiguous()
    y = F.group_norm(x, num_groups, weight, bias, eps)
    return F.relu(y, inplace=True) if relu else y
