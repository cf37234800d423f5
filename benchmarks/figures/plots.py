"""Plots the committed runs: speed-up over the plain path, distance from the floor, and scaling of
time and memory.

`python benchmarks/figures/plots.py` writes SVG files to docs/benchmarks; needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from committed import (
    NATIVE,
    SCALING,
    Case,
    Growth,
    committed_runs,
    growths,
    read_all_cases,
    read_cases,
)

mpl.use("svg")

import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
COLUMNS = 4
"""Panels per row of a figure."""
COLORS = {"native": "#0b6e4f", "plain": "#b0b7bf", "other": "#e08e45"}


def speedups(cases: list[Case], title: str, file: Path) -> None:
    """Draw bars per case: speed-up of this project and of the best other over the plain path."""
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(cases) + 1.2), layout="constrained")
    labels = [case.label for case in cases]
    places = range(len(cases))
    others = [case.best_other() for case in cases]
    axes.barh([p - 0.2 for p in places], [c.plain / c.native for c in cases], 0.4,
              color=COLORS["native"], label="mfkernels")  # fmt: skip
    axes.barh([p + 0.2 for p in places],
              [c.plain / ms if ms else 0 for c, (_, ms) in zip(cases, others, strict=True)], 0.4,
              color=COLORS["other"], label="best other")  # fmt: skip
    axes.axvline(1, color=COLORS["plain"], linewidth=1)
    axes.set(xscale="log", xlabel="times faster than the plain path", title=title)
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.invert_yaxis()
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def floors(cases: list[Case], title: str, file: Path) -> None:
    """Draw points per case: time relative to the floor, the memory traffic and products alone."""
    known = [c for c in cases if c.rows[NATIVE]["floor_ms"] > 0]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(known) + 1.2), layout="constrained")
    for name, color in (("native", COLORS["native"]), ("reference", COLORS["plain"]),
                        ("compile", COLORS["other"])):  # fmt: skip
        points = [(c.rows[name]["times_floor"], k) for k, c in enumerate(known) if name in c.rows]
        if points:
            axes.scatter(*zip(*points, strict=True), color=color, label=name, s=24)
    axes.set(xscale="log", xlabel="time / floor (bytes and matrix products alone)", title=title)
    axes.set_yticks(range(len(known)), [c.label for c in known], fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def growth(series: list[Growth], title: str, file: Path, *, memory: bool = False) -> None:
    """Draw a log-log panel per series: time or peak memory over size.

    For time, dashed lines show the expected growth.
    """
    rows = -(-len(series) // COLUMNS)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=(3 * COLUMNS, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(series) :]:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, series, strict=False):
        for provider, points in one.points.items():
            sizes = [size for size, _, _ in points]
            values = [mb if memory else ms for _, ms, mb in points]
            color = COLORS["native" if provider == NATIVE else "plain"]
            label = provider if memory else f"{provider}, slope {one.slope(provider):.2f}"
            axes.plot(sizes, values, "o-", color=color, label=label, markersize=4)
            if not memory:
                guide = [values[-1] * (size / sizes[-1]) ** one.expected for size in sizes]
                axes.plot(sizes, guide, "--", color=color, linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        sizes = [size for size, _, _ in one.points[NATIVE]]
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.set_title(one.name, fontsize=9)
        axes.legend(frameon=False, fontsize=7)
        axes.tick_params(labelsize=7, which="both")
    figure.suptitle(f"{title}: {'peak memory, MB' if memory else 'time, ms'}", fontsize=10)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "mfkernels"
    for run in committed_runs():
        machine, cases = read_cases(run)
        cases = [case for case in cases if case.operation != SCALING]
        if cases:
            speedups(cases, machine, FOLDER / f"{run.stem}_speedup.svg")
        if any(case.rows[NATIVE]["floor_ms"] > 0 for case in cases):
            floors(cases, machine, FOLDER / f"{run.stem}_floor.svg")
        series = growths(case for case in read_all_cases(run)[1] if case.operation == SCALING)
        if series:
            growth(series, machine, FOLDER / f"{run.stem}_time.svg")
            growth(series, machine, FOLDER / f"{run.stem}_memory.svg", memory=True)


if __name__ == "__main__":
    main()
