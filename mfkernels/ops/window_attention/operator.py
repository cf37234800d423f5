"""The operators `window_attention` and `window_attention_backward`.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.common.arguments import check_argument, is_empty
from mfkernels.ops.common.maps import check_maps, parameter_dtype
from mfkernels.ops.common.registration import differentiable_again, register, save
from mfkernels.ops.window_attention import reference

LONGEST_WINDOW = 32
"""The longest side of a window."""


def check(
    qkv: Tensor,
    padding: Tensor,
    bias: Tensor,
    window_height: int,
    window_width: int,
    shift_height: int,
    shift_width: int,
) -> None:
    check_argument("qkv", qkv, ("B", "h", "w", 3, "H", "D"), qkv)
    heads, channels = qkv.shape[4:]
    check_maps(qkv.dtype, channels)
    if is_empty(qkv):
        raise ValueError(f"qkv must have images, tokens and heads, got {list(qkv.shape)}")
    for window, shift in ((window_height, shift_height), (window_width, shift_width)):
        if not 0 < window <= LONGEST_WINDOW:
            raise ValueError(f"windows must have sides of 1 to {LONGEST_WINDOW}, got {window}")
        if not 0 <= shift < window:
            raise ValueError(f"shifts must be from 0 to {window - 1}, got {shift}")
    tokens = window_height * window_width
    dtype = parameter_dtype(qkv.dtype)
    check_argument("padding", padding, (3, heads, channels), qkv, dtype)
    check_argument("bias", bias, (heads, tokens, tokens), qkv, dtype)


def check_backward(grad_result: Tensor, normalizer: Tensor, *arguments: Any) -> None:
    check(*arguments)
    qkv, _, bias = arguments[:3]
    check_argument("grad_result", grad_result, (*qkv.shape[:3], *qkv.shape[4:]), qkv, qkv.dtype)
    check_argument("normalizer", normalizer, _normalizer_shape(*arguments), qkv, bias.dtype)


def _normalizer_shape(
    qkv: Tensor, _: Tensor, bias: Tensor, window_height: int, window_width: int, *__: int
) -> tuple[int, ...]:
    batch, height, width = qkv.shape[:3]
    windows = -(-height // window_height) * -(-width // window_width)
    return (batch * windows, bias.shape[0], 2, bias.shape[1])


def fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    qkv, _, bias = arguments[:3]
    result = qkv.new_empty((*qkv.shape[:3], *qkv.shape[4:]))
    return result, bias.new_empty(_normalizer_shape(*arguments))


def fake_backward(_: Tensor, __: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    qkv, padding, bias = (x.new_empty(x.shape) for x in arguments[:3])
    return qkv, padding, bias


@differentiable_again("window_attention", reference.window_attention)
def backward(ctx: Any, grad_result: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_result is None:
        return (None,) * 7
    gradients = torch.ops.mfkernels.window_attention_backward(
        grad_result, *ctx.saved_tensors, *ctx.options
    )
    return (*gradients, None, None, None, None)


register("window_attention_backward", check=check_backward, fake=fake_backward)
register("window_attention", check=check, fake=fake, setup_context=save(1), backward=backward)
