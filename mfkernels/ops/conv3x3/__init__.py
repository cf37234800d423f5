"""3 x 3 convolution."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.conv3x3.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import check_device, check_floating, usable_by_autograd
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.common.maps import (
    CHANNELS,
    DTYPES,
    HAS_VECTORS,
    check_parameter_dtype,
    dtype_under_autocast,
    parameter_dtype,
)
from mfkernels.ops.conv3x3 import reference
from mfkernels.torch_internals import has_amx

FEWEST_CHANNELS = {torch.float32: 64, torch.bfloat16: 96}
FEWEST_PIXELS = {torch.float32: 1024, torch.bfloat16: 8192}
HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
HAS_MATRIX_UNITS = has_amx()


@served_by_pytorch_where_kernels_fail("conv3x3")
def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.conv2d(x, weight, bias, padding=1)` for 3 x 3 filters; on a CPU with Winograd.

    The CPU kernel uses Winograd's F(4 x 4, 3 x 3): 36 multiplications per tile and pair of channels
    instead of 144 (Lavin and Gray, 2016). Its rounding errors are about four times those of the
    direct sum. It needs C and O to be multiples of 16, and float32, float64 or bfloat16 (which it
    computes in float32); PyTorch runs all other calls.

    Args:
        x: `[B, C, h, w]`, any floating-point dtype; fastest with channels last in memory. Under
            autocast, float32 is converted to autocast's dtype.
        weight: `[O, C, 3, 3]`, in the dtype of `x`, or float32 if `x` is bfloat16; under autocast,
            float32, bfloat16 or float16.
        bias: `[O]`, with the same dtypes as `weight`, or None.

    Returns:
        `[B, O, h, w]`, in the dtype of `x` or of autocast. The kernel's result has channels last in
        memory. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape or device is wrong.
    """
    _check(x, weight, bias)
    if backend.select("conv3x3", x.device, _problem(x, weight)) != "native":
        return reference.conv3x3(x, weight, bias)
    x = usable_by_autograd(x.to(dtype_under_autocast(x)))
    weight = usable_by_autograd(weight.to(parameter_dtype(x.dtype)))
    bias = None if bias is None else bias.to(weight.dtype)
    result: Tensor = torch.ops.mfkernels.conv3x3(x, weight, bias)
    return result


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel supports a convolution and is faster than PyTorch's own.

    Compared with oneDNN on AVX2 and AVX-512, it is 1.1 to 3 times as fast (benchmarks/NOTES.md).
    With fewer channels than `FEWEST_CHANNELS`, the transforms dominate; with fewer pixels than
    `FEWEST_PIXELS`, those of the weights do. In bfloat16, it is faster than oneDNN on AVX-512, but
    not on the matrix units of AMX.
    """
    # Exported and traced models must run on machines without this library. This comes first: an
    # export would record comparisons of sizes as guards.
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    dtype = dtype_under_autocast(x)
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and dtype in FEWEST_CHANNELS
        and HAS_VECTORS
        and not (dtype == torch.bfloat16 and (HAS_MATRIX_UNITS or not HAS_AVX512))
        and min(weight.shape[:2]) >= FEWEST_CHANNELS[dtype]
        # Pixels of one image, not of the batch: the choice, and so the result for an image, must
        # not depend on the batch size.
        and x.shape[2] * x.shape[3] >= FEWEST_PIXELS[dtype]
        and _problem(x, weight) is None
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating("x", x)
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
        if tensor is not None:
            check_parameter_dtype(name, tensor, "x", x)


def _problem(x: Tensor, weight: Tensor) -> str | None:
    dtype = dtype_under_autocast(x)
    if dtype not in DTYPES:
        return f"x is {dtype}, expected float32, bfloat16 or float64"
    if weight.dtype not in (dtype, parameter_dtype(dtype)):
        return f"x is {dtype} and weight {weight.dtype}, expected the same"
    if 0 in weight.shape or weight.shape[0] % CHANNELS or weight.shape[1] % CHANNELS:
        return (
            f"{weight.shape[1]} input and {weight.shape[0]} output channels are not both multiples "
            f"of {CHANNELS}"
        )
    return None
