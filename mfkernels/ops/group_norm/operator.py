"""The operators `group_norm` and `group_norm_backward`.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.common.arguments import check_argument, is_empty
from mfkernels.ops.common.maps import check_maps, parameter_dtype
from mfkernels.ops.common.registration import differentiable_again, register, save
from mfkernels.ops.group_norm import reference


def check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, *_: float) -> None:
    check_argument("x", x, ("B", "C", "h", "w"), x)
    channels = x.shape[1]
    check_maps(x.dtype, channels)
    if is_empty(x):
        raise ValueError(f"x must have images and pixels, got {list(x.shape)}")
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")
    for name, values in (("weight", weight), ("bias", bias)):
        check_argument(name, values, (channels,), x, parameter_dtype(x.dtype))


def check_backward(
    grad_y: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    relu: bool,
) -> None:
    check(x, weight, bias, groups)
    check_argument("grad_y", grad_y, x.shape, x, x.dtype)
    for name, values in (("mean", mean), ("inverse_std", inverse_std)):
        check_argument(name, values, (x.shape[0], groups), x, weight.dtype)


def fake(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *_: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    mean, inverse_std = (weight.new_empty(x.shape[0], groups) for _ in range(2))
    return y, mean, inverse_std


def fake_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = arguments[3:6]
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


@differentiable_again("group_norm", reference.group_norm)
def backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 6
    groups, _, relu = ctx.options
    gradients = torch.ops.mfkernels.group_norm_backward(grad_y, *ctx.saved_tensors, groups, relu)
    return (*gradients, None, None, None)


register("group_norm_backward", check=check_backward, fake=fake_backward)
register("group_norm", check=check, fake=fake, setup_context=save(1, 2), backward=backward)
