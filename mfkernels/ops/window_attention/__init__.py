"""Self-attention inside of the windows of a map."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.window_attention.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import check_device, check_floating, usable_by_autograd
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.common.arguments import as_size
from mfkernels.ops.common.maps import (
    CHANNELS,
    DTYPES,
    HAS_VECTORS,
    check_parameter_dtype,
    dtype_under_autocast,
    parameter_dtype,
)
from mfkernels.ops.window_attention import reference
from mfkernels.ops.window_attention.operator import LONGEST_WINDOW
from mfkernels.scalars import integer_or_none


@served_by_pytorch_where_kernels_fail("window_attention")
def window_attention(
    qkv: Tensor,
    relative_position_bias: Tensor,
    window_size: tuple[int, int],
    shift_size: tuple[int, int] = (0, 0),
    padding: Tensor | None = None,
) -> Tensor:
    """Compute the multi-head self-attention of Swin inside of the shifted windows of a map.

    The map is padded at the bottom and on the right to whole windows, shifted up and to the left in
    a cycle, and divided into windows of N tokens. In each,
    `softmax(q k^T / sqrt(D) + relative_position_bias) v` (Liu et al., 2021, equation 4), where -100
    is added to the scores of tokens that only the shift brought together. Results move back to
    their tokens. Unlike in Swin's own code, `qkv` is computed before the map is padded, so that the
    linear layers around this have no tokens of padding.

    The CPU kernel reads tokens where they are and stores neither windows nor scores. It needs D to
    be a multiple of 16, windows with sides of at most 32, and float32, float64 or bfloat16 (which
    it computes in float32); PyTorch runs all other calls.

    Args:
        qkv: `[B, h, w, 3, H, D]`, queries, keys and values of H heads, any floating-point dtype.
            Under autocast, float32 is converted to autocast's dtype.
        relative_position_bias: `[H, N, N]`, in the dtype of `qkv`, or float32 if `qkv` is bfloat16;
            under autocast, float32, bfloat16 or float16.
        window_size: height and width of windows.
        shift_size: by how many rows and columns the map is shifted, each smaller than the window.
        padding: `[3, H, D]`, query, key and value of each token of padding: the bias of the layer
            that computes `qkv`, whose inputs Swin pads with zeros. None means zeros. Same dtypes as
            `relative_position_bias`.

    Returns:
        `[B, h, w, H, D]`, in the dtype of `qkv` or of autocast. Differentiable with respect to
        `qkv`, `relative_position_bias` and `padding`.

    Raises:
        TypeError, ValueError: a dtype, shape, size or device is wrong.
    """
    window, shift = _check(qkv, relative_position_bias, window_size, shift_size, padding)
    qkv = qkv.to(dtype_under_autocast(qkv))
    dtype = parameter_dtype(qkv.dtype)
    if padding is None:
        padding = qkv.new_zeros(qkv.shape[3:], dtype=dtype)
    bias, padding = relative_position_bias.to(dtype), padding.to(dtype)
    if backend.select("window_attention", qkv.device, _problem(qkv, window)) != "native":
        return reference.window_attention(qkv, padding, bias, *window, *shift)
    inputs = [usable_by_autograd(value) for value in (qkv, padding, bias)]
    result: Tensor = torch.ops.mfkernels.window_attention(*inputs, *window, *shift)[0]
    return result


def is_faster(x: Tensor, channels: int, window_size: tuple[int, int]) -> bool:
    """Whether the kernel supports the dtype (or autocast's) and device of `x`, heads of so many
    channels and these windows, and is faster than PyTorch (benchmarks/NOTES.md).
    """
    # Exported and traced models must run on machines without this library.
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return (
        x.device.type == "cpu"
        and dtype_under_autocast(x) in (torch.float32, torch.bfloat16)
        and HAS_VECTORS
        and channels % CHANNELS == 0
        and max(window_size) <= LONGEST_WINDOW
    )


def _check(
    qkv: Tensor,
    bias: Tensor,
    window_size: tuple[int, int],
    shift_size: tuple[int, int],
    padding: Tensor | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return window and shift as integers."""
    check_floating("qkv", qkv)
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be [B, h, w, 3, H, D], got {list(qkv.shape)}")
    if 0 in (*qkv.shape[1:3], qkv.shape[5]):
        raise ValueError(f"qkv must have tokens and channels, got {list(qkv.shape)}")
    window = as_size(window_size)
    if window is None:
        raise ValueError(f"window_size must be two positive integers, got {window_size!r}")
    shift = _as_shift(shift_size, window)
    if shift is None:
        raise ValueError(
            f"shift_size must be two integers from 0 to below window_size {window}, "
            f"got {shift_size!r}"
        )
    heads, channels = qkv.shape[4:]
    tokens = window[0] * window[1]
    expected = {"relative_position_bias": (bias, (heads, tokens, tokens))}
    if padding is not None:
        expected["padding"] = (padding, (3, heads, channels))
    for name, (values, shape) in expected.items():
        check_floating(name, values)
        check_device(name, values, qkv.device)
        if values.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(values.shape)}")
        check_parameter_dtype(name, values, "qkv", qkv)
    return window, shift


def _as_shift(shift_size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int] | None:
    try:
        height, width = (integer_or_none(side) for side in shift_size)
    except (TypeError, ValueError):
        return None
    if height is None or width is None:
        return None
    return (height, width) if 0 <= height < window[0] and 0 <= width < window[1] else None


def _problem(qkv: Tensor, window: tuple[int, int]) -> str | None:
    if qkv.dtype not in DTYPES:
        return f"qkv is {qkv.dtype}, expected float32, bfloat16 or float64"
    if qkv.shape[-1] % CHANNELS:
        return f"{qkv.shape[-1]} channels of a head are not a multiple of {CHANNELS}"
    if max(window) > LONGEST_WINDOW:
        return f"windows of {window[0]} x {window[1]} are larger than {LONGEST_WINDOW}"
    if qkv.numel() == 0:
        return f"qkv is empty, {list(qkv.shape)}"
    return None
