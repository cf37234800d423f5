"""The time that each kernel should take, and what bounds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpu.model.cases import BRANCHES, TRIPS, Case, bytes_of
from gpu.model.machines import (
    MOST_PROGRAMS,
    MOST_WARPS,
    REGISTERS,
    RESERVED_OF_A_PROGRAM,
    SCHEDULERS,
    SHARED_MEMORY,
    START_US,
    Machine,
)
from gpu.model.sass import Counts, Program
from helpers.gpu.compiler import Compiled, Launch, compile_launch, cuobjdump


@dataclass(frozen=True)
class Work:
    """What a launch does, on any GPU of the architecture."""

    kernel: str
    programs: int
    warps: int
    """Of a program."""
    resident: int
    """Programs that a multiprocessor holds at once, by registers and shared memory."""
    registers: int
    shared_memory: int
    spilled: int
    of_a_warp: Counts
    bytes: int

    @property
    def instructions(self) -> float:
        """Of all warps."""
        return self.programs * self.warps * self.of_a_warp.instructions


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
        of_a_warp=program.run_through(trips, BRANCHES.get(launch.name, 1.0)),
        bytes=bytes_of(launch),
    )


def resident_programs(compiled: Compiled, warps: int) -> int:
    registers = -(-compiled.registers // 8) * 8 * 32 * warps
    return min(
        REGISTERS // registers,
        SHARED_MEMORY // (compiled.shared + RESERVED_OF_A_PROGRAM),
        MOST_WARPS // warps,
        MOST_PROGRAMS,
    )


@dataclass(frozen=True)
class Prediction:
    """Microseconds by what could bound a kernel; the longest counts."""

    bounds: dict[str, float]

    @property
    def us(self) -> float:
        return max(self.bounds.values()) + START_US

    @property
    def bound_by(self) -> str:
        return max(self.bounds, key=lambda name: self.bounds[name])


def predict(work: Work, machine: Machine) -> Prediction:
    """What the multiprocessor with the most programs needs, bound by bound."""
    programs = math.ceil(work.programs / machine.multiprocessors)
    counts, warps = work.of_a_warp, programs * work.warps / SCHEDULERS
    cycles = {"issue": counts.instructions * warps}
    for pipe in ("alu", "mufu", "lsu", "tensor"):
        cycles[pipe] = counts.busy[pipe] * warps
    cycles["fma"] = (counts.busy["fma"] + counts.busy["fma heavy"]) * warps
    # Programs that a multiprocessor holds at once wait at the same time; others come after them.
    rounds = programs / work.resident
    cycles["latency"] = counts.latency * (rounds if rounds > 4 else math.ceil(rounds))
    us = {name: 1e6 * number / machine.clock for name, number in cycles.items()}
    return Prediction({**us, "memory": 1e6 * work.bytes / machine.bandwidth})
