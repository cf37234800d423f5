"""Describes the machine, and prints the summary of a run: this project against the best other."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from harness.comparison import is_ours
from harness.plugin import Comparisons

import mfkernels


def describe_machine(device: torch.device) -> dict[str, str | int | float]:
    """The hardware, software versions and background load under which the figures were measured."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 1,
        "load": os.getloadavg()[1],
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
    """Print a line per case and setting of this project against the best other, red if slower."""
    if not comparisons.table:
        return
    terminal.write_sep("-", "mfkernels against the best other, medians")
    for (operation, case), infos in comparisons.table.items():
        others = {name: info["p50_ms"] for name, info in infos.items() if not is_ours(name)}
        for name in filter(is_ours, infos):
            variant = name.partition("-")[2]
            ours = infos[name]["p50_ms"]
            line = f"{f'{operation}: {case} {variant}':<52} {ours:10.3f} ms"
            if not others:
                terminal.write_line(line)
                continue
            best = min(others, key=others.__getitem__)
            ratio = others[best] / ours
            line += f"   {best} {others[best]:10.3f} ms   {ratio:6.2f}x"
            terminal.write_line(line, **({"green": True} if ratio >= 1 else {"red": True}))
    _images(terminal, comparisons)
    _slopes(terminal, comparisons)
    for line in comparisons.wrong:
        terminal.write_line(line, red=True)


def _images(terminal: Any, comparisons: Comparisons) -> None:
    """Print throughput, peak memory and time per part of operations on whole images."""
    rows = [
        (f"{case}, {provider}", info)
        for (_, case), infos in comparisons.table.items()
        for provider, info in infos.items()
        if info["images_per_s"] is not None
    ]
    if rows:
        terminal.write_sep("-", "images a second, peak memory, parts")
    for name, info in rows:
        parts = ", ".join(f"{part} {ms:.0f}" for part, ms in (info["parts_ms"] or {}).items())
        line = f"{name:<52} {info['images_per_s']:8.2f} images/s"
        if info["peak_mb"] is not None:
            line += f" {info['peak_mb']:7.0f} MB"
        terminal.write_line(line + (f"   {parts} ms" if parts else ""))


def _slopes(terminal: Any, comparisons: Comparisons) -> None:
    """Print how time scales in each series: the exponent of the size, from a log-log fit, and the
    exponent of the dominant term. On a CPU the fit uses CPU time, which background load distorts
    less than wall time: unlike providers, the cases of a series are not timed interleaved.
    """
    series: dict[tuple[str, str, float], list[tuple[float, float]]] = defaultdict(list)
    for infos in comparisons.table.values():
        for provider, info in infos.items():
            if info["series"] is not None:
                name, size, expected = info["series"].values()
                point = math.log(size), math.log(info["cpu_ms"] or info["p50_ms"])
                series[name, provider, expected].append(point)
    if any(len(points) > 1 for points in series.values()):
        terminal.write_sep("-", "growth: time ~ size ^ exponent")
    for (name, provider, expected), points in series.items():
        if len(points) > 1:
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            line = f"{name:<40} {provider:<12} {slope:5.2f}   at most {expected:g} expected"
            terminal.write_line(line)
