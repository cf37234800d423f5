"""The properties of GPUs that decide the block sizes of kernels and which form of a kernel runs."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal, NamedTuple

import torch


class Generation(NamedTuple):
    """The properties that GPUs of one architecture share."""

    bfloat16: bool
    factors: Literal["registers", "shared memory", "tensor memory"] | None
    """Where matrix units read their factors ("tensor memory": it also holds their accumulators).
    None: Triton uses no matrix units, and keeps everything in registers."""
    copies_asynchronously: bool
    """Whether it copies from global to shared memory asynchronously, bypassing registers."""
    max_sum_columns: int = 64
    """The largest number of accumulator columns that fit a program's registers beside the values
    that it computes with."""


TURING = Generation(bfloat16=False, factors=None, copies_asynchronously=False)
AMPERE = Generation(bfloat16=True, factors="registers", copies_asynchronously=True)
HOPPER = Generation(bfloat16=True, factors="shared memory", copies_asynchronously=True)
BLACKWELL = Generation(bfloat16=True, factors="tensor memory", copies_asynchronously=True)
CONSUMER = AMPERE._replace(max_sum_columns=32)
CDNA = Generation(bfloat16=True, factors="registers", copies_asynchronously=False)

GENERATIONS = {7: TURING, 8: AMPERE, 9: HOPPER, 10: BLACKWELL, 11: BLACKWELL, 12: CONSUMER}
"""By the major number of NVIDIA's compute capability; unknown ones are treated as `CONSUMER`."""


class Gpu(NamedTuple):
    name: str
    """The compiler's name of its architecture, such as sm_90."""
    generation: Generation
    shared_memory: int
    """The largest shared memory of one program (thread block), in bytes."""


KNOWN = {
    "sm_75": Gpu("sm_75", TURING, 64 << 10),
    "sm_80": Gpu("sm_80", AMPERE, 163 << 10),
    "sm_86": Gpu("sm_86", AMPERE, 99 << 10),
    "sm_89": Gpu("sm_89", AMPERE, 99 << 10),
    "sm_90": Gpu("sm_90", HOPPER, 227 << 10),
    "sm_100": Gpu("sm_100", BLACKWELL, 227 << 10),
    "sm_103": Gpu("sm_103", BLACKWELL, 227 << 10),
    "sm_120": Gpu("sm_120", CONSUMER, 99 << 10),
    "gfx942": Gpu("gfx942", CDNA, 64 << 10),
}
"""The GPUs for which all kernels are compiled and their resources counted: docs/gpus.md. The
properties of a GPU that is present are queried instead."""

assumed = KNOWN["sm_90"]
"""The GPU to choose kernels for if there is none, as for fake tensors."""

ROCM: bool = torch.version.hip is not None
ASSEMBLY: bool = not ROCM and os.environ.get("TRITON_INTERPRET", "0") != "1"
"""Whether kernels may contain inline PTX; otherwise they use equivalent Triton operations."""


def gpu_of(device: torch.device) -> Gpu:
    """The properties of this device, or `assumed` if it is not a GPU that is present."""
    return (_present(device) if device.type == "cuda" else None) or assumed


@functools.cache
def _present(device: torch.device) -> Gpu | None:
    if not torch.cuda.is_available():  # the device of a fake tensor
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    if ROCM:
        name = properties.gcnArchName.partition(":")[0]
        return Gpu(name, CDNA, properties.shared_memory_per_block)
    name = f"sm_{properties.major}{properties.minor}"
    generation = GENERATIONS.get(properties.major, CONSUMER)
    return Gpu(name, generation, properties.shared_memory_per_block_optin)
