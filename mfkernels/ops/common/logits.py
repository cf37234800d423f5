"""Mask logits and their precision."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision, which is too inaccurate for sums, to float32; keep float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def logits_of_image(rows: Tensor, features: Tensor | None) -> Tensor:
    """Mask logits `[..., h, w]` of some queries of one image, in at least float32.

    `rows` are embeddings `[..., C]` with `features [C, h, w]`, or logits `[..., h, w]` with None.
    """
    if features is None:
        return at_least_float32(rows)
    dtype = torch.promote_types(torch.promote_types(rows.dtype, features.dtype), torch.float32)
    return torch.einsum("...c,chw->...hw", rows.to(dtype), features.to(dtype))
