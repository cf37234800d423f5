"""Bilinear sampling of images at points."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.sample_points.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import (
    check_device,
    check_floating,
    check_memory,
    check_tensor,
    usable_by_autograd,
    without_autocast,
)
from mfkernels.ops.sample_points import reference


def sample_points(images: Tensor, points: Tensor) -> Tensor:
    """Sample images bilinearly at points, with zeros beyond the edge (Mask2Former, §3.3).

    The result is that of `F.grid_sample(align_corners=False)`, but masks are not copied to floating
    point.

    Args:
        images: `[M, h, w]`, bool or any floating-point dtype.
        points: `[M, P, 2]`, or `[1, P, 2]` for the same points in all images; any floating-point
            dtype. x and y are from 0 to 1, from edge to edge of the image.

    Returns:
        `[M, P]`, float32 (float64 for float64 points). Differentiable with respect to `images`, not
        to `points`.

    Raises:
        TypeError, ValueError: a dtype, shape or device is wrong.
    """
    check_tensor("images", images)
    if images.dtype != torch.bool:
        check_floating("images", images)
    check_memory("images", images)
    check_floating("points", points)
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must be [M, height, width], got {list(images.shape)}")
    if points.ndim != 3 or points.shape[2] != 2 or points.shape[0] not in (1, len(images)):
        raise ValueError(
            f"points must be [{len(images)}, P, 2] or [1, P, 2], got {list(points.shape)}"
        )
    check_device("points", points, images.device)
    with without_autocast(images.device):
        points = usable_by_autograd(points.detach())
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        if backend.select("sample_points", images.device) != "native":
            return reference.sample_points(images, points)
        values: Tensor = torch.ops.mfkernels.sample_points(images, points)
        return values
