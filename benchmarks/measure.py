"""Interleaved timing of several providers on the same inputs, and rows as data."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure. `ms` is the median; `ratio` is against the baseline of the case."""

    operation: str
    case: str
    provider: str
    device: str
    ms: float
    p20: float
    p80: float
    ratio: float
    rounds: int


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    providers: dict[str, Callable[[], object]],
    device: torch.device,
    seconds: float = 2.0,
    least: int = 7,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Milliseconds of many calls of each provider, in turns, after a warm-up.

    The number of rounds is what fits into `seconds`, at least `least`.
    """
    for provider in providers.values():
        for _ in range(warm_up):
            provider()
    _synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in providers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, provider in providers.items():
            start = time.perf_counter()
            provider()
            _synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def rows(
    operation: str,
    case: str,
    device: torch.device,
    times: dict[str, list[float]],
    baseline: str,
) -> list[Row]:
    """Medians and spread of each provider, with the speed-up over the baseline."""
    base = statistics.median(times[baseline])
    result = []
    for provider, values in times.items():
        ordered = sorted(values)
        median = statistics.median(values)
        result.append(
            Row(
                operation,
                case,
                provider,
                str(device),
                median,
                ordered[len(ordered) // 5],
                ordered[-1 - len(ordered) // 5],
                base / median,
                len(values),
            )
        )
    return result


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
