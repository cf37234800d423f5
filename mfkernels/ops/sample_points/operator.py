"""The operators `sample_points` and `sample_points_backward`.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.common.arguments import check_argument, check_images
from mfkernels.ops.common.registration import differentiable_again, register, save
from mfkernels.ops.sample_points.reference import gathered_points


def check(images: Tensor, points: Tensor) -> None:
    check_images("images", images)
    check_argument("points", points, ("M", "P", 2), images)
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"points must be float32 or float64, got {points.dtype}")
    if points.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"points must be [{images.shape[0]}, P, 2] or [1, P, 2], got {list(points.shape)}"
        )


def check_backward(grad_values: Tensor, images: Tensor, points: Tensor) -> None:
    check(images, points)
    if images.dtype == torch.bool:
        raise TypeError("images of bool have no gradient")
    sizes = (images.shape[0], points.shape[1])
    check_argument("grad_values", grad_values, sizes, images, points.dtype)


def fake(images: Tensor, points: Tensor) -> Tensor:
    return points.new_empty((images.shape[0], points.shape[1]))


def fake_backward(grad_values: Tensor, images: Tensor, points: Tensor) -> Tensor:
    return images.new_empty(images.shape)


@differentiable_again("sample_points", gathered_points)
def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None]:
    return torch.ops.mfkernels.sample_points_backward(grad_values, *ctx.saved_tensors), None


register("sample_points_backward", check=check_backward, fake=fake_backward)
register("sample_points", check=check, fake=fake, setup_context=save(), backward=backward)
