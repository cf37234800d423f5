"""Start Triton kernels on the device of their tensors and on the caller's stream."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from mfkernels.fallback import KernelError
from mfkernels.triton import devices

# A cache that cannot be written, a compiler of its launcher that fails, a folder without execution.
_REFUSALS = (TritonError, RuntimeError, OSError, subprocess.SubprocessError, ImportError)
_NOT_OF_THE_KERNEL = (
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
"""Of an earlier kernel, maybe another library's: an asynchronous error shows at the next call."""


def launch(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """Start `kernel` on `grid` programs, if there are any; arguments and options go by name."""
    if devices.ROCM:
        arguments.pop("maxnreg", None)  # which AMD's compiler does not know
    if 0 not in grid:
        # Products and sums are fused, for speed and one rounding less; Triton's default until 3.9.
        start(kernel, grid, enable_fp_fusion=True, **arguments)


def start(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """`launch`, sure of work to do; tests replace it to record what is started."""
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    try:
        with guard:
            kernel[grid](**arguments)
    except _REFUSALS as error:
        if any(words in str(error) for words in _NOT_OF_THE_KERNEL):
            raise
        raise KernelError(f"{kernel.__name__}: {type(error).__name__}: {error}") from error


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int, at_least: int = 1) -> int:
    """The smallest power of 2 that is neither below `n` nor below `at_least`."""
    return max(1 << max(n - 1, 0).bit_length(), at_least)
