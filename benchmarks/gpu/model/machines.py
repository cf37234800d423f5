"""What a multiprocessor of compute capability 9 does in a cycle, and the two GPUs that have it."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULERS = 4
"""Of a multiprocessor; each issues one instruction of a warp in a cycle."""
REGISTERS = 65536
SHARED_MEMORY = 228 << 10
RESERVED_OF_A_PROGRAM = 1 << 10
MOST_WARPS = 64
MOST_PROGRAMS = 32

CYCLES = {"alu": 2.0, "fma": 1.0, "fma heavy": 2.0, "mufu": 8.0, "lsu": 4.0, "tensor": 1.0}
"""For which an instruction of a warp keeps the pipe of its scheduler busy (CUDA programming guide,
throughput of arithmetic instructions); an instruction of the tensor pipe has its own number."""

WAIT = 30
"""Cycles that a warp waits, about, where its code waits for a result of variable latency."""

START_US = 1.5
"""Until a kernel's first programs run and after its last ones end, about."""


@dataclass(frozen=True)
class Machine:
    name: str
    multiprocessors: int
    clock: float
    """Cycles a second under load."""
    bandwidth: float
    """Bytes a second that a copy reaches."""


MACHINES = {
    "H100": Machine("H100 SXM", 132, 1.755e9, 3.35e12 * 0.9),
    "H200": Machine("H200", 132, 1.755e9, 4.8e12 * 0.9),
}
