"""Resources and throughput of a multiprocessor (compute capability 9.0), and two GPUs with it."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULERS = 4
"""Warp schedulers per multiprocessor; each has one issue slot per cycle."""
REGISTERS = 65536
SHARED_MEMORY = 228 << 10
RESERVED_SHARED_MEMORY = 1 << 10
MAX_WARPS = 64
MAX_PROGRAMS = 32

CYCLES = {"alu": 2.0, "fma": 1.0, "fma heavy": 2.0, "mufu": 8.0, "lsu": 4.0, "tensor": 1.0}
"""Cycles for which one warp instruction occupies its pipe on a scheduler (CUDA programming guide,
throughput of arithmetic instructions); on the tensor pipe, it depends on the instruction."""

WAIT_CYCLES = 30
"""Approximate cycles that a warp stalls when it waits for a result of variable latency."""

START_US = 1.5
"""Approximate launch overhead of a kernel: before its first programs run and after its last end."""


@dataclass(frozen=True)
class Machine:
    name: str
    multiprocessors: int
    clock: float
    """Clock rate under load, in Hz."""
    bandwidth: float
    """Memory bandwidth that a copy reaches, in bytes per second."""


MACHINES = {
    "H100": Machine("H100 SXM", 132, 1.755e9, 3.35e12 * 0.9),
    "H200": Machine("H200", 132, 1.755e9, 4.8e12 * 0.9),
}
