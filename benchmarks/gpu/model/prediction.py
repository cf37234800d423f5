"""Predicts the time of each kernel, and the resource that bounds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpu.model.cases import BRANCHES, TRIPS, Case, bytes_of
from gpu.model.machines import (
    MAX_PROGRAMS,
    MAX_WARPS,
    REGISTERS,
    RESERVED_SHARED_MEMORY,
    SCHEDULERS,
    SHARED_MEMORY,
    START_US,
    Machine,
)
from gpu.model.sass import Counts, Program
from helpers.gpu.compiler import Compiled, Launch, compile_launch, cuobjdump


@dataclass(frozen=True)
class Work:
    """The work of a launch, the same on every GPU of the architecture.

    A program is a thread block.
    """

    kernel: str
    programs: int
    warps: int
    """Warps per program."""
    resident: int
    """Occupancy: programs that fit on a multiprocessor at once."""
    registers: int
    shared_memory: int
    spilled: int
    per_warp: Counts
    bytes: int

    @property
    def instructions(self) -> float:
        """Warp instructions of the whole launch."""
        return self.programs * self.warps * self.per_warp.instructions


def work_of(launch: Launch, case: Case, architecture: str = "sm_90") -> Work:
    compiled = compile_launch(launch, architecture)
    warps = launch.options["num_warps"]
    program = Program.of(cuobjdump(compiled.binary, "-sass"))
    trips = TRIPS[launch.name](launch.arguments, case)
    return Work(
        kernel=launch.name,
        programs=math.prod(launch.grid),
        warps=warps,
        resident=resident_programs(compiled, warps),
        registers=compiled.registers,
        shared_memory=compiled.shared,
        spilled=compiled.spilled,
        per_warp=program.run_through(trips, BRANCHES.get(launch.name, 1.0)),
        bytes=bytes_of(launch),
    )


def resident_programs(compiled: Compiled, warps: int) -> int:
    """Programs per multiprocessor, limited by registers, shared memory, warps and programs."""
    registers = -(-compiled.registers // 8) * 8 * 32 * warps
    return min(
        REGISTERS // registers,
        SHARED_MEMORY // (compiled.shared + RESERVED_SHARED_MEMORY),
        MAX_WARPS // warps,
        MAX_PROGRAMS,
    )


@dataclass(frozen=True)
class Prediction:
    """Predicted microseconds for each resource that could bound a kernel; the largest decides."""

    bounds: dict[str, float]

    @property
    def us(self) -> float:
        return max(self.bounds.values()) + START_US

    @property
    def bound_by(self) -> str:
        return max(self.bounds, key=lambda name: self.bounds[name])


def predict(work: Work, machine: Machine) -> Prediction:
    """The time that the multiprocessor with the most programs needs, for each bound."""
    programs = math.ceil(work.programs / machine.multiprocessors)
    counts, warps = work.per_warp, programs * work.warps / SCHEDULERS
    cycles = {"issue": counts.instructions * warps}
    for pipe in ("alu", "mufu", "lsu", "tensor"):
        cycles[pipe] = counts.busy[pipe] * warps
    cycles["fma"] = (counts.busy["fma"] + counts.busy["fma heavy"]) * warps
    # Resident programs hide each other's latency; the remaining ones follow in further waves.
    rounds = programs / work.resident
    cycles["latency"] = counts.latency * (rounds if rounds > 4 else math.ceil(rounds))
    us = {name: 1e6 * number / machine.clock for name, number in cycles.items()}
    return Prediction({**us, "memory": 1e6 * work.bytes / machine.bandwidth})
