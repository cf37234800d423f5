"""Mask logits from their two factors, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_logits(mask_embed: Tensor, pixel_features: Tensor) -> Tensor:
    """`[L, B, Q, h, w]` from `[L, B, Q, C]` and `[B, C, h, w]`, in the wider of the two dtypes."""
    dtype = torch.promote_types(mask_embed.dtype, pixel_features.dtype)
    return torch.einsum("lbqc,bchw->lbqhw", mask_embed.to(dtype), pixel_features.to(dtype))
