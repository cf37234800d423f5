"""3 x 3 convolution in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve `x [B, C, h, w]`, zero-padded by 1, with `weight [O, C, 3, 3]`.

    Returns `[B, O, h, w]` in the dtype of `x`.
    """
    if x.dtype == torch.bfloat16:  # the weights may be float32
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight, bias, padding=1)
