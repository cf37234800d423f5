"""Reads what `pytest benchmarks --benchmark-json FILE` writes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NATIVE, PLAIN = "native", ("reference", "original")
RESULTS = Path(__file__).resolve().parents[1] / "results"
"""Committed runs, one file per machine, and what the compilers said."""


def committed_runs() -> list[Path]:
    """The files under results/ that hold a run."""
    files = sorted(RESULTS.glob("*.json"))
    return [file for file in files if "benchmarks" in json.loads(file.read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class Case:
    """Median milliseconds of the providers of one case, and what else each row says."""

    operation: str
    name: str
    rows: dict[str, dict[str, Any]]

    @property
    def native(self) -> float:
        return float(self.rows[NATIVE]["p50_ms"])

    @property
    def plain(self) -> float:
        return float(next(self.rows[name]["p50_ms"] for name in PLAIN if name in self.rows))

    def best_other(self) -> tuple[str, float]:
        """The fastest of the others and its time; an empty name where there is none."""
        others = {
            name: float(row["p50_ms"])
            for name, row in self.rows.items()
            if name != NATIVE and name not in PLAIN
        }
        name = min(others, key=others.__getitem__, default="")
        return name, others.get(name, 0.0)


def read_cases(file: Path) -> tuple[str, list[Case]]:
    """What a run was measured on, and the cases that ours and the plain path completed."""
    content = json.loads(file.read_text(encoding="utf-8"))
    machine = content["machine_info"]["mfkernels"]
    on = f"{machine['threads']} CPU threads" if machine["kind"] == "cpu" else machine["device"]
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in content["benchmarks"]:
        groups[row["group"]][row["params"]["provider"]] = row["extra_info"]
    cases = [Case(*group.split(": ", 1), rows) for group, rows in groups.items()]
    return str(on), [c for c in cases if NATIVE in c.rows and {*PLAIN} & c.rows.keys()]
