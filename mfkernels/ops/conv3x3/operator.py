"""The operators `conv3x3` and `conv3x3_weight_grad`.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.common.arguments import check_argument
from mfkernels.ops.common.maps import check_maps, parameter_dtype
from mfkernels.ops.common.registration import differentiable_again, register, save
from mfkernels.ops.conv3x3 import reference


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_argument("x", x, ("B", "C", "h", "w"), x)
    check_argument("weight", weight, ("O", x.shape[1], 3, 3), x, parameter_dtype(x.dtype))
    if bias is not None:
        check_argument("bias", bias, weight.shape[:1], x, parameter_dtype(x.dtype))
    check_maps(x.dtype, x.shape[1], weight.shape[0])


def check_weight_grad(grad_y: Tensor, x: Tensor) -> None:
    check_argument("x", x, ("B", "C", "h", "w"), x)
    batch, _, height, width = x.shape
    check_argument("grad_y", grad_y, (batch, "O", height, width), x, x.dtype)
    check_maps(x.dtype, x.shape[1], grad_y.shape[1])


def fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[0], height, width)
    layout = torch.channels_last
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def fake_weight_grad(grad_y: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((grad_y.shape[1], x.shape[1], 3, 3), dtype=parameter_dtype(x.dtype))


@differentiable_again("conv3x3", reference.conv3x3)
def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight, _ = ctx.saved_tensors
    x_needed, weight_needed, bias_needed = ctx.needs_input_grad
    # Convert to channels last once, for both gradients. `vmap` does not support
    # `contiguous(memory_format=...)`.
    grad_y = grad_y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    grad_x = grad_weight = grad_bias = None
    if x_needed:
        flipped = weight.flip(2, 3).transpose(0, 1)
        grad_x = torch.ops.mfkernels.conv3x3(grad_y, flipped, None)
    if weight_needed:
        grad_weight = torch.ops.mfkernels.conv3x3_weight_grad(grad_y, x)
    if bias_needed:
        # Rounded to the dtype of `grad_y`, as in PyTorch: a `sum` with another dtype takes ten
        # times as long.
        grad_bias = grad_y.sum((0, 2, 3)).to(parameter_dtype(x.dtype))
    return grad_x, grad_weight, grad_bias


register("conv3x3_weight_grad", check=check_weight_grad, fake=fake_weight_grad)
register("conv3x3", check=check, fake=fake, setup_context=save(), backward=backward)
