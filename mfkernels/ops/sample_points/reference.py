"""Bilinear sampling of images at points, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.torch_internals import is_transformed

FAR = 1e30
"""The coordinate that replaces infinity: also outside the image, but without the NaN that
`grid_sample` returns for infinity."""


def sample_points(images: Tensor, points: Tensor) -> Tensor:
    """Sample images `[M, h, w]` bilinearly at points `[M, P, 2]` or `[1, P, 2]`; returns `[M, P]`.

    A point is x and y, where 0 and 1 are opposite edges of the image; outside, the image is zero.
    """
    if not images.dtype.is_floating_point or is_transformed():
        return gathered_points(images, points)
    return sample_finite_points(images, points.clamp(-FAR, FAR))


def sample_finite_points(images: Tensor, points: Tensor) -> Tensor:
    """`sample_points` for floating-point images and points that are not infinite."""
    if is_transformed():
        return gathered_points(images, points)
    # Images are the batch, even if all share the same points: as channels of one image, they would
    # be sampled together and not fit the cache.
    grid = (2 * points - 1)[:, None].expand(len(images), -1, -1, -1)
    maps = images[:, None].to(points.dtype)
    # `torch.compile` does not support double backward.
    twice = maps.requires_grad and not torch.compiler.is_compiling()
    values: Tensor = _GridSample.apply(maps, grid) if twice else _grid_sample(maps, grid)
    return values[:, 0, 0]


def _grid_sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False)


class _GridSample(torch.autograd.Function):
    """`grid_sample`, but twice differentiable with respect to maps, in which it is linear.

    PyTorch has no derivative of the gradient of `grid_sample`.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(maps, grid)
        return _grid_sample(maps, grid)

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None]:
        return _GridSampleGradient.apply(grad_values, *ctx.saved_tensors), None


class _GridSampleGradient(torch.autograd.Function):
    """The gradient with respect to maps, which does not depend on their values."""

    @staticmethod
    def forward(ctx: Any, grad_values: Tensor, maps: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        mode = (0, 0, False)  # bilinear, zeros beyond the edge, align_corners
        gradient: Tensor
        gradient, _ = torch.ops.aten.grid_sampler_2d_backward(
            grad_values.contiguous(), maps, grid, *mode, (True, False)
        )
        return gradient

    @staticmethod
    def backward(ctx: Any, grad_maps: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _GridSample.apply(grad_maps, grid), None, None


def gathered_points(images: Tensor, points: Tensor) -> Tensor:
    """`sample_points` with `gather` instead of `grid_sample`.

    It needs no floating-point copy of the images, which would be large for masks, and its operators
    support forward-mode differentiation, unlike `grid_sample`.
    """
    count, height, width = images.shape
    # A NaN point gives the value NaN; like an infinite point, it is outside and has no gradient.
    values = 0 * points.clamp(0, 1).sum(-1).expand(count, -1)
    points = points.nan_to_num(FAR, FAR, -FAR)
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.long() * width + column.long()).where(inside, 0).expand(count, -1)
            corner = across * down * images.flatten(1).gather(1, index)
            values = values + torch.where(inside, corner, 0)
    return values
