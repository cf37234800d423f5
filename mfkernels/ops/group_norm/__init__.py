"""Group norm, optionally followed by ReLU."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.group_norm.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import check_device, check_floating, usable_by_autograd
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.common.maps import CHANNELS, DTYPES, HAS_VECTORS, parameter_dtype
from mfkernels.ops.group_norm import reference
from mfkernels.scalars import as_integer, as_number


@served_by_pytorch_where_kernels_fail("group_norm")
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    relu: bool = False,
) -> Tensor:
    """Compute `F.group_norm(x, num_groups, weight, bias, eps)`, then ReLU if `relu`.

    The CPU kernel needs channels last in memory, C to be a multiple of 16, and float32, float64 or
    bfloat16 (which it computes in float32); PyTorch runs all other calls. Two images with 256
    channels of 128 x 128 pixels take, forward and backward, 2.4 ms instead of 15 in bfloat16, and a
    third of PyTorch's time in float32 (benchmarks/NOTES.md).

    Args:
        x: `[B, C, h, w]`, any floating-point dtype.
        num_groups: the number of groups of channels (Wu and He, 2018), a divisor of C.
        weight, bias: `[C]`, in the dtype of `x`, or float32 if `x` is bfloat16.
        eps: added to the variance.
        relu: whether to replace negative results by zero.

    Returns:
        `[B, C, h, w]` in the dtype of `x`; on a GPU under autocast, float32. The kernel's result
        has channels last in memory. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or number is wrong, or the groups do not
            divide C.
    """
    num_groups, eps = as_integer("num_groups", num_groups), as_number("eps", eps)
    _check(x, num_groups, weight, bias)
    if backend.select("group_norm", x.device, _problem(x)) != "native":
        return reference.group_norm(x, weight, bias, num_groups, eps, relu)
    dtype = parameter_dtype(x.dtype)
    inputs = [usable_by_autograd(value) for value in (x, weight.to(dtype), bias.to(dtype))]
    result: Tensor = torch.ops.mfkernels.group_norm(*inputs, num_groups, eps, relu)[0]
    return result


def is_faster(x: Tensor) -> bool:
    """Whether the kernel supports `x` and is faster than PyTorch (benchmarks/NOTES.md)."""
    # Exported and traced models must run on machines without this library, and the compiler fuses
    # PyTorch's operators itself. This comes first: comparisons of sizes would be guards.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and HAS_VECTORS
        and _problem(x) is None
    )


def _check(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor) -> None:
    check_floating("x", x)
    if x.ndim != 4:
        raise ValueError(f"x must be [B, C, h, w], got {list(x.shape)}")
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups must divide the {channels} channels, got {num_groups}")
    for name, values in (("weight", weight), ("bias", bias)):
        check_floating(name, values)
        check_device(name, values, x.device)
        if values.shape != (channels,):
            raise ValueError(f"{name} must be [{channels}], got {list(values.shape)}")
        if values.dtype not in (x.dtype, parameter_dtype(x.dtype)):
            raise TypeError(f"{name} must be {x.dtype} to match x, got {values.dtype}")


def _problem(x: Tensor) -> str | None:
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}, expected float32, bfloat16 or float64"
    if x.shape[1] == 0 or x.shape[1] % CHANNELS:
        return f"{x.shape[1]} channels are not a multiple of {CHANNELS}"
    if x.numel() == 0:
        return f"x is empty, {list(x.shape)}"
    # `vmap` does not support `is_contiguous(memory_format=...)`.
    if not x.permute(0, 2, 3, 1).is_contiguous():
        return "x does not have channels last in memory"
    return None
