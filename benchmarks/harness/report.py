"""Rows on the terminal and as JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from harness.timing import Row

RESULTS = Path(__file__).resolve().parents[1] / "results"


def machine(device: torch.device) -> dict[str, str | int]:
    """What the figures were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
            name = models[0].partition(":")[2].strip() if models else name
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }


def show(result: Iterable[Row]) -> None:
    """Print a table, one block a case."""
    case = ""
    for row in result:
        if row.case != case:
            case = row.case
            print(f"\n{row.operation} {case} on {row.device}")
        print(
            f"  {row.provider:<28} {row.ms:9.3f} ms  ({row.p20:.3f} to {row.p80:.3f})"
            f"  x{row.ratio:.2f}"
        )
    sys.stdout.flush()


def write(path: Path, result: Iterable[Row], device: torch.device) -> None:
    """Write rows and machine as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(device), "rows": [asdict(row) for row in result]}
    path.write_text(json.dumps(data, indent=1) + "\n")
