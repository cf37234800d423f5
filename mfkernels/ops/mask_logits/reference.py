"""Mask logits from their two factors."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_logits(mask_embed: Tensor, pixel_features: Tensor) -> Tensor:
    """`[L, B, Q, C]` and `[B, C, h, w]` give `[L, B, Q, h, w]`, in the wider of their dtypes."""
    dtype = torch.promote_types(mask_embed.dtype, pixel_features.dtype)
    return torch.einsum("lbqc,bchw->lbqhw", mask_embed.to(dtype), pixel_features.to(dtype))


def product(mask_embed: Tensor, pixel_features: Tensor) -> Tensor:
    """The same of one dtype, as one product.

    `einsum`, and `bmm` of the strides that flattened channels of one image get, take five times as
    long where channels come last.
    """
    layers, images, queries, channels = mask_embed.shape
    rows = mask_embed.transpose(0, 1).reshape(images, layers * queries, channels)
    if pixel_features.stride(1) < pixel_features.stride(3):
        columns = pixel_features.permute(0, 2, 3, 1).flatten(1, 2).mT
    else:
        columns = pixel_features.flatten(2)
    logits = torch.bmm(rows, columns).view(images, layers, queries, *pixel_features.shape[2:])
    return logits.transpose(0, 1)
