"""The properties of GPUs that decide the block sizes of kernels and which form of a kernel runs."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal, NamedTuple

import torch


class Generation(NamedTuple):
    """What GPUs of one design share."""

    bfloat16: bool
    factors: Literal["registers", "shared memory", "tensor memory"] | None
    """Where matrix units find them (those of tensor memory keep their sums there, too). None: the
    compiler uses none, and holds all in registers."""
    copies_asynchronously: bool
    """From memory to shared memory, without registers in between."""
    most_sums: int = 64
    """Columns of sums that the registers of a program hold beside what it computes."""


TURING = Generation(bfloat16=False, factors=None, copies_asynchronously=False)
AMPERE = Generation(bfloat16=True, factors="registers", copies_asynchronously=True)
HOPPER = Generation(bfloat16=True, factors="shared memory", copies_asynchronously=True)
BLACKWELL = Generation(bfloat16=True, factors="tensor memory", copies_asynchronously=True)
CONSUMER = AMPERE._replace(most_sums=32)
CDNA = Generation(bfloat16=True, factors="registers", copies_asynchronously=False)

GENERATIONS = {7: TURING, 8: AMPERE, 9: HOPPER, 10: BLACKWELL, 11: BLACKWELL, 12: CONSUMER}
"""By the leading number of NVIDIA's compute capability; later ones are taken for the last."""


class Gpu(NamedTuple):
    name: str
    """As compilers call its architecture."""
    generation: Generation
    shared_memory: int
    """Bytes that one program may have."""


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
"""Those for which all kernels are compiled and counted: docs/gpus.md. What others have, they say
themselves."""

assumed = KNOWN["sm_90"]
"""For which kernels are made where there is no GPU."""

ROCM: bool = torch.version.hip is not None
ASSEMBLY: bool = not ROCM and os.environ.get("TRITON_INTERPRET", "0") != "1"
"""Whether kernels may hold instructions of NVIDIA's; else they take what those stand for."""


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that this is, or `assumed`."""
    return (_present(device) if device.type == "cuda" else None) or assumed


@functools.cache
def _present(device: torch.device) -> Gpu | None:
    if not torch.cuda.is_available():  # of fake tensors
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    if ROCM:
        name = properties.gcnArchName.partition(":")[0]
        return Gpu(name, CDNA, properties.shared_memory_per_block)
    name = f"sm_{properties.major}{properties.minor}"
    generation = GENERATIONS.get(properties.major, CONSUMER)
    return Gpu(name, generation, properties.shared_memory_per_block_optin)
