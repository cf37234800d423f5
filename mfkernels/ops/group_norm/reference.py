"""Group norm in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, relu: bool
) -> Tensor:
    """Normalise `x [B, C, h, w]`, then apply ReLU if `relu`."""
    y = F.group_norm(x, num_groups, weight, bias, eps)
    return F.relu(y, inplace=True) if relu else y
