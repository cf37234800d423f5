"""Convolutions of 3 x 3."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.conv3x3.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import (
    check_device,
    check_floating,
    check_tensor,
    has_autocast,
    usable_by_autograd,
)
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.conv3x3 import reference
from mfkernels.ops.conv3x3.operator import CHANNELS, DTYPES, weight_dtype

FEWEST_CHANNELS = {torch.float32: 64, torch.bfloat16: 96}
FEWEST_PIXELS = {torch.float32: 1024, torch.bfloat16: 8192}
HAS_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
HAS_MATRIX_UNITS = getattr(torch.cpu, "_is_amx_tile_supported", bool)()


@served_by_pytorch_where_kernels_fail("conv3x3")
def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` of kernels of 3 x 3, by Winograd's method on a CPU.

    Tiles of 4 x 4 pixels take 36 multiplications for each pair of channels instead of 144 (Lavin
    and Gray, 2016). Rounding errors are some four times those of the sum itself.

    Args:
        x: `[B, C, h, w]`, fastest with channels last in memory.
            Autocast makes bfloat16 or half precision of float32.
        weight: `[O, C, 3, 3]`, in the dtype of `x`, or with bfloat16 and autocast also float32. The
            kernel takes float32, float64 and bfloat16, which it computes in float32, and C and O in
            multiples of 16; PyTorch serves the rest.
        bias: `[O]`, likewise.

    Returns:
        `[B, O, h, w]`, in the dtype of `x` or autocast's, of the kernel with channels last in
        memory. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit.
    """
    _check(x, weight, bias)
    if backend.select("conv3x3", x.device, _problem(x, weight)) != "native":
        return reference.conv3x3(x, weight, bias)
    x = usable_by_autograd(x.to(_dtype(x)))
    weight = usable_by_autograd(weight.to(weight_dtype(x.dtype)))
    bias = None if bias is None else bias.to(weight.dtype)
    result: Tensor = torch.ops.mfkernels.conv3x3(x, weight, bias)
    return result


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can serve a convolution, and takes less time than PyTorch's own.

    Beside oneDNN with AVX2 and AVX-512: 1.1 to 3 times as fast (benchmarks/NOTES.md). Below so
    many channels the transforms are the larger part, below so many pixels those of the weights. In
    bfloat16 it is beside AVX-512 with instructions for it, not beside the matrix units of AMX.
    """
    dtype = _dtype(x)
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and dtype in FEWEST_CHANNELS
        and HAS_VECTORS
        and not (dtype == torch.bfloat16 and (HAS_MATRIX_UNITS or not HAS_AVX512))
        and min(weight.shape[:2]) >= FEWEST_CHANNELS[dtype]
        # Of an image: its result does not depend on its company.
        and x.shape[2] * x.shape[3] >= FEWEST_PIXELS[dtype]
        and _problem(x, weight) is None
        # What is exported goes to machines without this library.
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("x", x)
    check_floating("x", x)
    check_tensor("weight", weight)
    check_floating("weight", weight)
    if x.ndim != 4:
        raise ValueError(f"x must be [B, C, h, w], got {list(x.shape)}")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"weight must be [O, {x.shape[1]}, 3, 3], got {list(weight.shape)}")
    check_device("weight", weight, x.device)
    if bias is not None:
        check_floating("bias", bias)
        check_device("bias", bias, x.device)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{len(weight)}], got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in _dtypes_beside(x):
            wanted = " or ".join(map(str, _dtypes_beside(x)))
            raise TypeError(f"{name} must be {wanted} as x, got {tensor.dtype}")


def _dtypes_beside(x: Tensor) -> tuple[torch.dtype, ...]:
    """Of weights and bias."""
    if _autocast(x) and x.dtype != torch.float64:
        return torch.float32, torch.bfloat16, torch.float16
    return (x.dtype,) if weight_dtype(x.dtype) == x.dtype else (x.dtype, weight_dtype(x.dtype))


def _autocast(x: Tensor) -> bool:
    return has_autocast(x.device.type) and torch.is_autocast_enabled(x.device.type)


def _dtype(x: Tensor) -> torch.dtype:
    """Of maps in the kernel."""
    if _autocast(x) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _problem(x: Tensor, weight: Tensor) -> str | None:
    dtype = _dtype(x)
    if dtype not in DTYPES:
        return f"maps are {dtype}, expected float32, bfloat16 or float64"
    if weight.dtype not in (dtype, weight_dtype(dtype)):
        return f"maps are {dtype} and weight {weight.dtype}, expected the same"
    if 0 in weight.shape or weight.shape[0] % CHANNELS or weight.shape[1] % CHANNELS:
        return f"{weight.shape[1]} and {weight.shape[0]} channels are no multiples of {CHANNELS}"
    return None
