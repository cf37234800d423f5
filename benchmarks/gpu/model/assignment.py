"""Predicts the assignment kernel, which nvcc compiles: latency of a search step times steps."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton
from gpu.model.cases import IMAGES, LAYERS, QUERIES, Case
from gpu.model.machines import START_US, Machine
from gpu.model.prediction import Prediction
from gpu.model.sass import Counts, Loop, Program

FUNCTION = re.compile(r"solve_by_warpIf.*InRegisters.*WarpELi4ELi4EEELb0ELb1EEE")
"""The kernel for up to 128 columns of float32 costs in shared memory, if any optimum will do."""


def program_of_the_library(library: Path, architecture: int = 90) -> Program:
    """The code of the assignment kernel in a native library.

    Raises:
        ValueError: the library has no such kernel for the architecture.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-arch", f"sm_{architecture}", "-sass", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for function in re.split(r"\n\s+Function : ", text)[1:]:
        if FUNCTION.search(function.partition("\n")[0]):
            return Program.of(function)
    raise ValueError(f"{library} has no assignment kernel for sm_{architecture}")


def step_of_the_search(program: Program) -> Counts:
    """One search step of one warp: the innermost loop with the most float64 additions."""
    innermost = [loop for loop in program.whole.flat() if not _holds_a_search(loop)]
    steps = [program.counts(loop.begin, loop.end) for loop in innermost]
    return max(steps, key=lambda counts: counts.names["DADD"])


def _holds_a_search(loop: Loop) -> bool:
    return any(inner.end - inner.begin > 64 for inner in loop.inner)


def predict_assignment(program: Program, case: Case, machine: Machine) -> Prediction:
    """Predict the worst case: every problem has identical queries, and all problems run at once.

    The search for the t-th segment then takes t steps. Untrained predictions come close to this.
    """
    step, rows = step_of_the_search(program), case.segments
    loading = program.counts(program.whole.flat()[0].begin, program.whole.flat()[0].end)
    costs_per_iteration = 16 * 128  # 16 costs per thread, 128 threads
    iterations = -(-rows * QUERIES // costs_per_iteration)
    cycles = rows * (rows + 1) / 2 * step.latency + iterations * loading.latency
    waves = -(-LAYERS * IMAGES // machine.multiprocessors)
    return Prediction({"latency": 1e6 * waves * cycles / machine.clock - START_US})
