"""Images at points between their pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import check_device, check_floating
from mfkernels.ops.common import operator_checks
from mfkernels.ops.sample_points import reference


def sample_points(images: Tensor, points: Tensor) -> Tensor:
    """`[M, h, w]` read bilinearly at points, with zeros beyond the edge (Mask2Former, §3.3).

    As `F.grid_sample(align_corners=False)` does, without floating-point copies of masks.

    Args:
        images: `[M, h, w]`, bool or any floating-point dtype.
        points: `[M, P, 2]`, or `[1, P, 2]` for all images; floating-point: x and y, 0 to 1 from
            edge to edge of the image. They have no gradient.

    Returns:
        `[M, P]`, float32 (float64 for float64 points). Differentiable once in `images`.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit.
    """
    if images.dtype != torch.bool:
        check_floating("images", images)
    operator_checks.check_memory("images", images)
    check_floating("points", points)
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must be [M, height, width], got {list(images.shape)}")
    if points.ndim != 3 or points.shape[2] != 2 or points.shape[0] not in (1, len(images)):
        raise ValueError(
            f"points must be [{len(images)}, P, 2] or [1, P, 2], got {list(points.shape)}"
        )
    check_device("points", points, images.device)
    with torch.autocast(images.device.type, enabled=False):
        points = points.detach().to(torch.promote_types(points.dtype, torch.float32))
        if backend.select("sample_points", images.device) == "native" and not images.is_cuda:
            values: Tensor = torch.ops.mfkernels.sample_points(images, points)
            return values
        return reference.sample_points(images, points)


def _fake(images: Tensor, points: Tensor) -> Tensor:
    operator_checks.sample_points(images, points)
    return points.new_empty((images.shape[0], points.shape[1]))


def _fake_backward(grad_values: Tensor, images: Tensor, points: Tensor) -> Tensor:
    operator_checks.sample_points_backward(grad_values, images, points)
    return images.new_empty(images.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None]:
    if torch.is_grad_enabled():
        raise RuntimeError("sample_points can be differentiated only once (create_graph=True)")
    return torch.ops.mfkernels.sample_points_backward(grad_values, *ctx.saved_tensors), None


if hasattr(torch.ops.mfkernels, "sample_points"):
    torch.library.register_fake("mfkernels::sample_points", _fake)
    torch.library.register_fake("mfkernels::sample_points_backward", _fake_backward)
    torch.library.register_autograd(
        "mfkernels::sample_points", _backward, setup_context=_setup_context
    )
