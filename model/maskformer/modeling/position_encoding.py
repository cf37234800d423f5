"""Sine position encoding of a 2-D map (Carion et al. 2020, appendix A.4; facts §1.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0
EPSILON = 1e-6


def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Encodes normalised row and column positions.

    Args:
        height, width: size of the map in cells.
        channels: a multiple of four; the first half encodes rows, the second half columns,
            sine on even and cosine on odd channels of each half.
        dtype: of the result; the angles are always computed in float32.

    Returns:
        `[channels, height, width]`.

    Raises:
        ValueError: `channels` is not a multiple of four.
    """
    if channels % 4:
        raise ValueError(
            f"channels must be a multiple of 4 (sine and cosine on two axes), got {channels}"
        )
    half = channels // 2
    octave = torch.arange(half // 2, device=device, dtype=torch.float32) * (2 / half)
    frequencies = TEMPERATURE**-octave

    def axis(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        position = position / (length + EPSILON) * (2 * math.pi)
        angles = frequencies[:, None] * position
        return torch.stack((angles.sin(), angles.cos()), dim=1).flatten(0, 1)

    rows = axis(height)[:, :, None].expand(half, height, width)
    columns = axis(width)[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns)).to(dtype)
