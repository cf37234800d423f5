"""Window attention in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -100.0
"""Added to the score of two tokens that only the shift brought together, as by Swin's authors."""


def window_attention(
    qkv: Tensor,
    padding: Tensor,
    bias: Tensor,
    window_height: int,
    window_width: int,
    shift_height: int,
    shift_width: int,
) -> Tensor:
    """Compute `[B, h, w, H, D]` from `qkv [B, h, w, 3, H, D]`, in its dtype.

    `padding` is `[3, H, D]` and `bias` `[H, N, N]`; either may be float32 where `qkv` is not.
    """
    height, width = qkv.shape[1:3]
    shift = (shift_height, shift_width)
    window = (window_height, window_width)
    below, right = -height % window_height, -width % window_width
    x = F.pad(qkv, (0, 0, 0, 0, 0, 0, 0, right, 0, below))
    inside = F.pad(qkv.new_ones(height, width, dtype=torch.bool), (0, right, 0, below))
    x = torch.where(inside[..., None, None, None], x, padding.to(qkv.dtype))
    x = torch.roll(x, (-shift_height, -shift_width), (1, 2))
    q, k, v = to_windows(x, window).permute(2, 0, 3, 1, 4).unbind()
    scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias
    if any(shift):
        parts = to_windows(_parts(inside, shift), window)
        masks = torch.where(parts[:, :, None] == parts[:, None, :], 0.0, MASKED)
        scores = (scores.unflatten(0, (-1, len(masks))) + masks[:, None].to(bias)).flatten(0, 1)
    y = scores.softmax(-1).to(v.dtype) @ v
    y = from_windows(y.transpose(1, 2), window, (inside.shape[0], inside.shape[1]))
    return torch.roll(y, shift, (1, 2))[:, :height, :width]


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """`[B, h, w, ...]` to `[B * windows, N, ...]`."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverse of `to_windows` for maps of a size."""
    x = windows.unflatten(1, window)
    x = x.unflatten(0, (-1, size[0] // window[0], size[1] // window[1]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _parts(like: Tensor, shift: tuple[int, int]) -> Tensor:
    """The part of the shifted map `[1, h, w]` to which each token belongs: in the last windows,
    those that the shift moved to the other side are another part.
    """
    height, width = like.shape
    rows, columns = (torch.arange(side, device=like.device) for side in (height, width))
    moved = (rows >= height - shift[0])[:, None] * 2 + (columns >= width - shift[1]) * 1
    return moved[None]
