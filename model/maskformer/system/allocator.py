"""What the C library does with memory that PyTorch frees on a CPU."""

from __future__ import annotations

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt` (malloc.h)."""
SETTINGS = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, keep freed memory for later tensors instead of returning it to the system.

    By default, glibc maps each large tensor anew, and the system clears it page by page when it is
    first written. Without that, training and prediction take up to 22 % less time, and up to
    30 % more memory (benchmarks/NOTES.md). Settings in the environment take precedence. Affects the
    whole process, so only commands call this. Large tensors of other threads than the main one,
    which use smaller heaps, still get new pages.
    """
    if device.type != "cpu" or any(name.startswith(SETTINGS) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
