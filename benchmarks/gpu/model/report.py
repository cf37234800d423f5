"""Predicted against measured times of the whole criterion, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from gpu.model.assignment import predict_assignment, program_of_the_library, step_of_the_search
from gpu.model.cases import CASES, IMAGES, LAYERS, QUERIES, Case, launches_of
from gpu.model.machines import MACHINES, SCHEDULERS, Machine
from gpu.model.prediction import Prediction, Work, predict, work_of

DTYPES = (torch.bfloat16, torch.float32)
MEASURED_ON = "H200"
ASSIGNMENT = "solve_by_warp"


@dataclass(frozen=True)
class Row:
    """Prediction and measurement of one kernel in one case."""

    case: str
    dtype: str
    kernel: str
    work: Work | None
    predictions: dict[str, Prediction]
    measured_us: float | None
    measured_instructions: float | None

    @property
    def ratio(self) -> float | None:
        """Measured / predicted."""
        us = self.predictions[MEASURED_ON].us
        return None if self.measured_us is None else self.measured_us / us


class Measured:
    """The measurements in benchmarks/results/h200.json."""

    def __init__(self, path: Path) -> None:
        found = json.loads(path.read_text()) if path.exists() else {"rows": [], "utilisation": []}
        self.rows = {row["name"]: row for row in found["rows"]}
        self.instructions = {
            (one["of"], one["kernel"]): one["instructions"] for one in found["utilisation"]
        }

    def us(self, case: str, dtype: str, kernel: str) -> float | None:
        kernels_us = self.rows.get(f"criterion {case} {dtype} native", {}).get("kernels_us", {})
        # Names of nvcc's kernels include their template arguments.
        return next(
            (us for name, us in kernels_us.items() if name == kernel or f"::{kernel}<" in name),
            None,
        )

    def total_ms(self, case: str, dtype: str) -> float | None:
        found: float | None = self.rows.get(f"criterion {case} {dtype} native", {}).get("graph_ms")
        return found


def rows_of(
    case: Case, dtype: torch.dtype, measured: Measured, library: Path | None
) -> Iterator[Row]:
    """One row per kernel of the criterion and its backward pass, except for PyTorch's kernels."""
    name = str(dtype).removeprefix("torch.")
    for launch in launches_of(case, dtype):
        work = work_of(launch, case)
        yield Row(
            *(case.name, name, work.kernel, work),
            {machine: predict(work, known) for machine, known in MACHINES.items()},
            measured.us(case.name, name, work.kernel),
            measured.instructions.get((f"criterion {case.name} {name}", work.kernel)),
        )
    if library is not None:
        program = program_of_the_library(library)
        predictions = {
            machine: predict_assignment(program, case, known) for machine, known in MACHINES.items()
        }
        us = measured.us(case.name, name, ASSIGNMENT)
        yield Row(case.name, name, ASSIGNMENT, None, predictions, us, None)


def per_unit(rows: list[Row], case: Case) -> dict[str, float]:
    """Thread instructions per unit of work, including the kernels' prologues and epilogues.

    The units are a logit in matching and a target pixel in the loss and its gradient.
    """
    of = {row.kernel: row.work for row in rows if row.work is not None}
    logits = LAYERS * IMAGES * QUERIES * case.pixels
    pixels = LAYERS * IMAGES * case.segments * 16 * case.pixels

    def threads(*kernels: str) -> float:
        return 32 * sum(of[name].instructions for name in kernels if name in of)

    return {
        "matching, a logit": threads("parts_kernel", "sums_kernel") / logits,
        "loss and gradient, a target pixel": threads("pixels_kernel", "combine_kernel") / pixels,
    }


def print_totals(totals: list[dict[str, Any]]) -> None:
    for total in totals:
        before, now = total["measured_ms_before"], total["measured_ms"]
        h100, h200 = total["predicted_ms_H100"], total["predicted_ms_H200"]
        print(
            f"{total['case']} {total['dtype']}: predicted {h100:.2f} ms (H100), {h200:.2f} ms "
            f"(H200); measured {now:.2f} ms, ratio {now / h200:.2f}; "
            f"round 0 measured {before:.2f} ms"
        )
        for unit, count in total["instructions"].items():
            print(f"    {unit}: {count:.1f} instructions")


def print_rows(rows: list[Row]) -> None:
    print(
        f"{'case':12}{'kernel':23}{'us H100':>9}{'us H200':>9} {'bound by':9}{'measured':>9}"
        f"{'ratio':>7}{'instructions':>14}{'ratio':>7}{'regs':>6}{'KB':>5}{'CTAs':>5}{'spills':>7}"
    )
    for row in rows:
        at = row.predictions
        line = f"{row.case + ' ' + row.dtype:12}{row.kernel:23}{at['H100'].us:9.1f}"
        line += f"{at['H200'].us:9.1f} {at['H200'].bound_by:9}"
        line += f"{row.measured_us:9.1f}{row.ratio:7.2f}" if row.ratio else " " * 16
        if row.work is not None:
            measured = row.measured_instructions
            ratio = f"{measured / row.work.instructions:7.2f}" if measured else " " * 7
            line += f"{row.work.instructions:14.3g}{ratio}{row.work.registers:6}"
            line += f"{row.work.shared_memory >> 10:5}{row.work.resident:5}{row.work.spilled:7}"
        print(line)


def summary(rows: list[Row], measured: Measured, before: dict[str, float]) -> list[dict[str, Any]]:
    """Predicted and measured milliseconds of the criterion with its backward pass, per case."""
    found = []
    for case in CASES:
        for dtype in dict.fromkeys(row.dtype for row in rows):
            some = [row for row in rows if (row.case, row.dtype) == (case.name, dtype)]
            if not some:
                continue
            total: dict[str, Any] = {"case": case.name, "dtype": dtype}
            total |= {
                f"predicted_ms_{name}": sum(row.predictions[name].us for row in some) / 1e3
                for name in MACHINES
            }
            total["measured_ms_before"] = before.get(f"criterion {case.name} {dtype} native")
            total["measured_ms"] = measured.total_ms(case.name, dtype)
            found.append(total | {"instructions": per_unit(some, case)})
    return found


def as_json(rows: list[Row], totals: list[dict[str, Any]], library: Path | None) -> dict[str, Any]:
    step = None if library is None else step_of_the_search(program_of_the_library(library))
    return {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "architecture": "sm_90",
        "what": "predicted: the longest of the bounds, of instructions counted in the compiled "
        "code; measured: benchmarks/results/h200.json, with Triton 3.6.0",
        "totals": totals,
        "stall_cycles_of_a_step_of_the_assignment": None if step is None else step.stalls,
        "kernels": [_as_json(row) for row in rows],
    }


def _as_json(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"case": row.case, "dtype": row.dtype, "kernel": row.kernel}
    if row.work is not None:
        work = row.work
        found |= {
            "programs": work.programs,
            "warps": work.warps,
            "programs_of_a_multiprocessor": work.resident,
            "registers": work.registers,
            "shared_memory": work.shared_memory,
            "spilled": work.spilled,
            "instructions": round(work.instructions),
            "bytes": work.bytes,
        }
    for name, prediction in row.predictions.items():
        bounds = {bound: round(us, 1) for bound, us in prediction.bounds.items()}
        found[f"us_{name}"] = {"predicted": round(prediction.us, 1), "bounds": bounds}
    found["measured_us"] = row.measured_us
    found["measured_instructions"] = row.measured_instructions
    return found


def plot(rows: list[Row], machine: Machine, path: Path) -> None:
    """Draw an instruction roofline: instructions per second over instructions per byte of memory
    traffic, predicted and measured, below the issue and bandwidth limits.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    roof = machine.multiprocessors * SCHEDULERS * machine.clock
    intensity = [2.0**power for power in range(-6, 8)]
    bound = [min(roof, machine.bandwidth * one) for one in intensity]
    axes.loglog(intensity, bound, color="black")
    for row in rows:
        if row.work is None or row.work.bytes < 1 << 20:
            continue
        x = row.work.instructions / row.work.bytes
        times = (row.predictions[MEASURED_ON].us, row.measured_us)
        for us, marker in zip(times, "ox", strict=True):
            if us is not None:
                axes.plot(x, row.work.instructions / us * 1e6, marker, color="C0")
        top = (x, row.work.instructions / times[0] * 1e6)
        axes.annotate(row.kernel.removesuffix("_kernel"), top)
    axes.set_xlabel("warp instructions per byte of memory traffic")
    axes.set_ylabel("warp instructions per second")
    axes.set_title(f"{machine.name}: o predicted, x measured (case {rows[0].case} {rows[0].dtype})")
    figure.tight_layout()
    figure.savefig(path)
