"""Draws the committed runs: how many times faster than the plain path, and how far from the floor.

`python benchmarks/figures/plots.py` writes SVG files into docs/benchmarks; needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from committed import Case, committed_runs, read_cases

mpl.use("svg")

import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
COLORS = {"native": "#0b6e4f", "plain": "#b0b7bf", "other": "#e08e45"}


def speedups(cases: list[Case], title: str, file: Path) -> None:
    """Bars per case: this project and the best other, against the plain path."""
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(cases) + 1.2), layout="constrained")
    labels = [f"{case.operation}, {case.name}" for case in cases]
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
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def floors(cases: list[Case], title: str, file: Path) -> None:
    """Points per case: time over what bytes and products alone would take."""
    known = [c for c in cases if c.rows["native"]["floor_ms"] > 0]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(known) + 1.2), layout="constrained")
    for name, color in (("native", COLORS["native"]), ("reference", COLORS["plain"]),
                        ("compile", COLORS["other"])):  # fmt: skip
        points = [(c.rows[name]["times_floor"], k) for k, c in enumerate(known) if name in c.rows]
        axes.scatter(*zip(*points, strict=True), color=color, label=name, s=24)
    axes.set(xscale="log", xlabel="time / floor (bytes and matrix products alone)", title=title)
    axes.set_yticks(range(len(known)), [f"{c.operation}, {c.name}" for c in known], fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "mfkernels"
    for run in committed_runs():
        machine, cases = read_cases(run)
        cases = [case for case in cases if case.operation != "growth"]
        speedups(cases, machine, FOLDER / f"{run.stem}_speedup.svg")
        floors(cases, machine, FOLDER / f"{run.stem}_floor.svg")


if __name__ == "__main__":
    main()
