"""``python -m mfkernels check``: print a table of all checks, and write a report as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

import mfkernels
from mfkernels import native
from mfkernels.backend import OPERATIONS
from mfkernels.selfcheck.checks import Row, check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=usual, help=f"cpu or cuda; here {usual} by default")
    parser.add_argument(
        "--quick", action="store_true", help="small problems only: seconds instead of minutes"
    )
    parser.add_argument(
        "--operation", choices=sorted({*OPERATIONS, "criterion"}), help="check only this"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write a report here")


def run(arguments: argparse.Namespace) -> int:
    """Run the checks and print the table.

    Returns:
        The exit code: 1 if something is wrong, otherwise 0.
    """
    try:
        device = torch.device(arguments.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(f"error: --device {arguments.device}: {str(error).splitlines()[0]}")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        sys.exit(f"error: --json {arguments.json}: there is no folder {arguments.json.parent}")
    if arguments.json is not None and arguments.json.is_dir():  # such as an empty path
        sys.exit(f"error: --json {arguments.json}: it is a folder, expected a file")
    machine = describe_machine(device)
    rows = _rows_with_progress(device, arguments)
    _print(machine, rows)
    if arguments.json is not None:
        report = {"machine": machine, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.problem for row in rows))


def _rows_with_progress(device: torch.device, arguments: argparse.Namespace) -> list[Row]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    rows = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiling and checking", total=None)
        for row in check(device, quick=arguments.quick, operation=arguments.operation):
            rows.append(row)
            progress.update(
                task, description=f"{len(rows)} checked, last {row.operation}, {row.form}"
            )
    return rows


def _print(machine: dict[str, Any], rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    for name, value in machine.items():
        console.print(f"{name}: {value}", highlight=False)
    timed = any(row.ms is not None for row in rows)
    heads = ["operation", "form", "dtype", "served by", "error", "plain PyTorch's"]
    costs = ["ms", "plain ms", "in a graph", "predicted"] if timed else []
    # The last two exist for GPUs only.
    costs = costs if any(row.graph_ms is not None for row in rows) else costs[:2]
    heads += costs
    table = Table(*heads, "verdict")
    for row in rows:
        times = (row.ms, row.plain_ms, row.graph_ms, row.predicted_ms)[: len(costs)]
        errors = [_number(row.error, ".1e"), _number(row.plain_error, ".1e")]
        table.add_row(
            *(row.operation, row.form, row.dtype, row.served, *errors),
            *(_number(time, ".3g") for time in times),
            _verdict(row),
        )
    console.print(table)
    wrong = sum(bool(row.problem) for row in rows)
    unserved = sum(row.error is None and not row.problem for row in rows)
    console.print(
        f"{len(rows) - wrong - unserved} right, {wrong} wrong, {unserved} served by plain PyTorch",
        style="red" if wrong else "green",
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _verdict(row: Row) -> str:
    if row.problem:
        return f"[red]{escape(row.problem)}[/red]"
    return "right" if row.error is not None else "reference"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine, for the readers of a report."""
    module = native.numpy_module
    facts: dict[str, Any] = {
        "mfkernels": mfkernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "build": {} if module is None else dict(module.build_info()),
        "missing": {part.name: part.problem for part in native.parts.values() if part.problem},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "GPU": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "CUDA of torch": torch.version.cuda or torch.version.hip,
        }
        try:
            import triton
        except ImportError:
            pass
        else:
            facts["triton"] = triton.__version__
    else:
        facts |= {"processor": _processor(), "threads": torch.get_num_threads()}
        facts["cores"] = os.cpu_count()
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
