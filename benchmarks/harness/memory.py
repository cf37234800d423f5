"""Measures the memory that a call saves for its backward pass, and its peak memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

HEAP_SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Environment variables that make glibc's heap keep its pages and use huge ones, so that the
baseline does not pay for page faults on its large temporary tensors.
"""


def saved_bytes(given: Iterable[Tensor], forward: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a forward pass, and the bytes it saves for backward, inputs not counted."""
    known = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    return result, sum(kept.values())


def peak_bytes(device: torch.device, call: Callable[[], Result]) -> tuple[Result, int]:
    """The result of a call, and by how many bytes its peak memory exceeds the use before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (VmHWM) to the present use
    before = _status("VmRSS")
    result = call()
    return result, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))
