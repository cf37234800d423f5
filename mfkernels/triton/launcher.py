"""Launch Triton kernels on the device of their tensors and on the caller's stream."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from mfkernels.fallback import KernelError
from mfkernels.triton import devices

# Besides errors of the compiler: Triton's cache cannot be written, the C compiler fails on Triton's
# launcher, or the file system does not allow its execution.
_LAUNCH_ERRORS = (TritonError, RuntimeError, OSError, subprocess.SubprocessError, ImportError)
_FOREIGN_ERRORS = (
    "out of memory",
    "captur",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "global/shared address space",
    "hardware stack error",
    "invalid program counter",
    "uncorrectable ECC",
    "device-side assert",
)
"""Errors of earlier kernels, maybe of another library: CUDA reports asynchronous errors at the next
call. The fallback does not handle them."""


def launch(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """Launch `kernel` on `grid`, unless it is empty; arguments and options are passed by name."""
    if devices.ROCM:
        arguments.pop("maxnreg", None)  # an option of NVIDIA's compiler only
    if 0 not in grid:
        # Fuse multiplications and additions (FMA), for speed and one rounding less. It was Triton's
        # default until 3.9.
        start(kernel, grid, enable_fp_fusion=True, **arguments)


def start(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """Launch `kernel` on a grid that is not empty; tests replace this function to record launches.

    Raises:
        KernelError: the kernel cannot be compiled or launched.
    """
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    try:
        with guard:
            kernel[grid](**arguments)
    except _LAUNCH_ERRORS as error:
        if any(words in str(error) for words in _FOREIGN_ERRORS):
            raise
        raise KernelError(f"{kernel.__name__}: {type(error).__name__}: {error}") from error


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int, at_least: int = 1) -> int:
    """The smallest power of 2 that is at least `n` and at least `at_least`."""
    return max(1 << max(n - 1, 0).bit_length(), at_least)
