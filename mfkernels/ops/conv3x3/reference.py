"""Convolutions of 3 x 3 in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[B, C, h, w]` with `[O, C, 3, 3]` and zeros around: `[B, O, h, w]`, in the dtype of `x`."""
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight.to(x.dtype), bias, padding=1)
