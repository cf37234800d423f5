"""Images at points between their pixels, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.backend import is_transformed


def sample_points(images: Tensor, points: Tensor) -> Tensor:
    """`[M, P]`: each of `[M, h, w]` read bilinearly at its points `[M, P, 2]`, or `[1, P, 2]`.

    Points are x and y, 0 to 1 from edge to edge; beyond the edge is zero.
    """
    if not images.dtype.is_floating_point or is_transformed():
        return gathered_points(images, points)
    # One image at a time stays in the cache, unlike the same points of all images as channels.
    grid = (2 * points - 1)[:, None].expand(len(images), -1, -1, -1)
    maps = images[:, None].to(points.dtype)
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False)[:, 0, 0]


def gathered_points(images: Tensor, points: Tensor) -> Tensor:
    """The same without a floating-point copy of the images, which for masks would be large.

    And in operators that have second and forward derivatives, unlike `grid_sample`.
    """
    count, height, width = images.shape
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    values = points.new_zeros(count, points.shape[1])
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.long() * width + column.long()).where(inside, 0).expand(count, -1)
            corner = across * down * images.flatten(1).gather(1, index)
            values = values + torch.where(inside, corner, 0)
    return values
