"""Reads the JSON files that `pytest benchmarks --benchmark-json FILE` writes."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NATIVE, PLAIN = "native", ("reference", "original")
MODELS = ("training_step", "inference", "loader")
"""Operations on whole images, which report throughput in images per second."""
SCALING = "scaling"
BUSY = 1.5
"""Load per CPU above which other work slowed a run, so that only its ratios and exponents count."""
RESULTS = Path(__file__).resolve().parents[1] / "results"
"""Committed runs (one or more files per machine) and the compilers' resource reports."""


def committed_runs() -> list[Path]:
    """The files under results/ that hold a benchmark run."""
    files = sorted(RESULTS.glob("*.json"))
    return [file for file in files if "benchmarks" in json.loads(file.read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class Case:
    """One case of a run; `rows` holds, for each provider, its median time and other figures."""

    operation: str
    name: str
    rows: dict[str, dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.operation}, {self.name}"

    @property
    def native(self) -> float:
        return float(self.rows[NATIVE]["p50_ms"])

    @property
    def plain(self) -> float:
        return float(next(self.rows[name]["p50_ms"] for name in PLAIN if name in self.rows))

    @property
    def compares(self) -> bool:
        """Whether both this project and the plain path completed the case."""
        return NATIVE in self.rows and bool({*PLAIN} & self.rows.keys())

    def best_other(self) -> tuple[str, float]:
        """The fastest provider besides `native` and the plain path, and its milliseconds.

        The name is empty if there is none.
        """
        others = {
            name: float(row["p50_ms"])
            for name, row in self.rows.items()
            if name != NATIVE and name not in PLAIN
        }
        name = min(others, key=others.__getitem__, default="")
        return name, others.get(name, 0.0)

    def settings(self) -> Iterator[Case]:
        """Yield the case once for each setting of this project that ran, with that as `native`."""
        others = {name: row for name, row in self.rows.items() if not name.startswith(NATIVE)}
        for name, row in self.rows.items():
            if name.startswith(NATIVE):
                called = self.name + name.removeprefix(NATIVE).replace("-", ", ")
                yield Case(self.operation, called, {NATIVE: row, **others})


def read_all_cases(file: Path) -> tuple[str, list[Case]]:
    """A description of the machine that a run was measured on, and all its cases."""
    content = json.loads(file.read_text(encoding="utf-8"))
    machine = content["machine_info"]["mfkernels"]
    threads = machine["threads"]
    on = machine["device"]
    if machine["kind"] == "cpu":
        on = f"{threads} CPU thread{'s' * (threads != 1)}"
    if machine.get("load", 0) > BUSY * machine.get("cpus", 1):
        on += f", load {machine['load']:.1f} of {machine['cpus']} CPUs"
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in content["benchmarks"]:
        groups[row["group"]][row["params"]["provider"]] = row["extra_info"]
    return str(on), [Case(*group.split(": ", 1), rows) for group, rows in groups.items()]


def read_cases(file: Path) -> tuple[str, list[Case]]:
    """A description of the machine, and the cases that both this project and the plain path
    completed, with a separate case for each setting of this project.
    """
    on, cases = read_all_cases(file)
    return on, [one for case in cases if case.compares for one in case.settings()]


@dataclass(frozen=True)
class Growth:
    """A scaling series: for each provider, points (size, milliseconds, peak MB) sorted by size.

    On a CPU the milliseconds are CPU time, summed over all threads.
    """

    name: str
    expected: float
    points: dict[str, list[tuple[float, float, float]]]

    def slope(self, provider: str) -> float:
        """The exponent of the size in the time: the slope of a log-log fit."""
        logs = [(math.log(size), math.log(ms)) for size, ms, _ in self.points[provider]]
        return statistics.linear_regression(*zip(*logs, strict=True)).slope


def growths(cases: Iterable[Case]) -> list[Growth]:
    """The scaling series among the cases of a run, if every provider has several points."""
    found: dict[str, Growth] = {}
    for case in cases:
        for provider, row in case.rows.items():
            if (series := row.get("series")) is None:
                continue
            name = series["name"]
            growth = found.setdefault(name, Growth(name, series["expected"], defaultdict(list)))
            peak = row["peak_mb"] or 0.0
            ms = row["cpu_ms"] or row["p50_ms"]
            growth.points[provider].append((series["size"], ms, peak))
    for growth in found.values():
        for points in growth.points.values():
            points.sort()
    return [one for one in found.values() if all(len(p) > 1 for p in one.points.values())]
