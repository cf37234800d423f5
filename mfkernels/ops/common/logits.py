"""Mask logits and their precision."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32, or float64 where it came as float64: half precision is too little for sums."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logits_of_image(rows: Tensor, features: Tensor | None) -> Tensor:
    """`[..., h, w]` mask logits, at least float32, of some rows of one image.

    `rows`: `[..., C]` embeddings with `features [C, h, w]`, or `[..., h, w]` logits with None.
    """
    if features is None:
        return at_least_float32(rows)
    dtype = torch.promote_types(torch.promote_types(rows.dtype, features.dtype), torch.float32)
    return torch.einsum("...c,chw->...hw", rows.to(dtype), features.to(dtype))
