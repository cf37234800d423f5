"""The machine, and the last lines of a run: ours beside the best other."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from harness.comparison import NATIVE
from harness.plugin import Comparisons

import mfkernels


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What the figures were measured on, and with what."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "mfkernels": mfkernels.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def summarize(terminal: Any, comparisons: Comparisons) -> None:
    """One line a case: this project against the best of the others, red where it loses."""
    if not comparisons.table:
        return
    terminal.write_sep("-", "mfkernels against the best other, medians")
    for (operation, case), infos in comparisons.table.items():
        if NATIVE not in infos:
            continue
        ours = infos[NATIVE]["p50_ms"]
        others = {name: info["p50_ms"] for name, info in infos.items() if name != NATIVE}
        line = f"{operation + ': ' + case:<52} {ours:10.3f} ms"
        if not others:
            terminal.write_line(line)
            continue
        best = min(others, key=others.__getitem__)
        ratio = others[best] / ours
        line += f"   {best} {others[best]:10.3f} ms   {ratio:6.2f}x"
        terminal.write_line(line, **({"green": True} if ratio >= 1 else {"red": True}))
    _slopes(terminal, comparisons)
    for line in comparisons.wrong:
        terminal.write_line(line, red=True)


def _slopes(terminal: Any, comparisons: Comparisons) -> None:
    """How the time of a series grows: the exponent of the size, fitted to logarithms."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for infos in comparisons.table.values():
        for provider, info in infos.items():
            if info["series"] is not None:
                name, size = info["series"]
                series[name, provider].append((math.log(size), math.log(info["p50_ms"])))
    if any(len(points) > 1 for points in series.values()):
        terminal.write_sep("-", "growth: time ~ size ^ exponent")
    for (name, provider), points in series.items():
        if len(points) > 1:
            terminal.write_line(f"{name:<40} {provider:<12} {_slope(points):5.2f}")


def _slope(points: list[tuple[float, float]]) -> float:
    mean = [sum(values) / len(points) for values in zip(*points, strict=True)]
    above = sum((x - mean[0]) * (y - mean[1]) for x, y in points)
    return above / sum((x - mean[0]) ** 2 for x, _ in points)
