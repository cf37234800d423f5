"""The page of the ablation: tables, the agreement with the paper, and plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plan import EXPERIMENTS, GENERAL, VARIANTS, Claim, Experiment

SEEDS = (0, 1, 2)
HEAD = """# The paper's claims on CamVid, at small scale

For each row, `make experiments` trains {steps} steps at half size with three seeds
([setting](../../tools/experiments/setting.yaml): `camvid_lite0`, an EfficientNet-Lite0 with
ImageNet weights), and writes this page; `make experiments EXPERIMENTS=--all` trains every variant.
Both continue where they stopped. Figures are mIoU in per cent on the 101 validation images, as mean
± standard deviation over seeds. The paper's figures are for ADE20K with a ResNet-50 and 160,000
steps: only which variant is better can be compared, not by how much.
"""
Scores = dict[str, dict[int, float]]
"""mIoU in per cent by variant and seed."""


def read_records(results: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(results.glob("*/seed_*.json"))]


def scores_of(records: Sequence[dict[str, Any]]) -> Scores:
    scores: Scores = {name: {} for name in (*VARIANTS, GENERAL)}
    for record in records:
        scores[record["variant"]][record["seed"]] = 100 * record["figures"]["miou"]
    return scores


def page(records: Sequence[dict[str, Any]], folder: str) -> str:
    """The page as Markdown; `folder` is the folder of its plots, relative to the page."""
    scores = scores_of(records)
    return "\n".join([*_head(records), *_missing(scores), *_experiments(scores, folder)]) + "\n"


def _head(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    steps = records[0]["setting"]["train"]["steps"] if records else "some"
    yield HEAD.format(steps=steps)
    changed = {value for record in records for value in record["overrides"]} - {
        *(value for values in VARIANTS.values() for value in values),
        *(f"train.seed={record['seed']}" for record in records),
    }
    if changed:
        yield f"With {', '.join(f'`{value}`' for value in sorted(changed))}.\n"


def _missing(scores: Scores) -> Iterator[str]:
    absent = [
        f"`{name}` ({', '.join(map(str, seeds))})"
        for name, found in scores.items()
        if (seeds := [seed for seed in SEEDS if seed not in found])
    ]
    if absent:
        yield f"Still to be run (seeds): {'; '.join(absent)}.\n"


def _experiments(scores: Scores, folder: str) -> Iterator[str]:
    for experiment in EXPERIMENTS:
        if not _compares(experiment, scores):
            continue
        yield f"## {experiment.title}\n"
        yield "| variant | mIoU | seeds |\n|---|---|---|"
        for name, label in experiment.variants.items():
            yield f"| {label} | {_mean(scores[name])} | {len(scores[name])} |"
        yield ""
        yield from (f"{_verdict(claim, experiment, scores)}\n" for claim in experiment.claims)
        if not experiment.claims:
            yield "The paper has no figure for this.\n"
        yield f"![{experiment.title}]({folder}/{experiment.name}.svg)\n"


def _compares(experiment: Experiment, scores: Scores) -> bool:
    return sum(bool(scores[name]) for name in experiment.variants) > 1


def _mean(found: dict[int, float]) -> str:
    if not found:
        return "not yet run"
    mean = f"{statistics.fmean(found.values()):.1f}"
    return f"{mean} ± {statistics.stdev(found.values()):.1f}" if len(found) > 1 else mean


def _verdict(claim: Claim, experiment: Experiment, scores: Scores) -> str:
    """Compare the claim with the differences between runs of the same seed."""
    names, figures = experiment.variants, claim.figures
    better, worse = scores[claim.better], scores[claim.worse]
    said = (
        f"Paper: {names[claim.better]} {figures[0]}, {names[claim.worse]} {figures[1]} "
        f"({figures[0] - figures[1]:+.1f})."
    )
    gains = [better[seed] - worse[seed] for seed in SEEDS if seed in better and seed in worse]
    if not gains:
        return f"{said} Here: not yet run."
    if len(gains) == 1:
        return f"{said} Here: {gains[0]:+.1f} with one seed, which is too few to say."
    gain, deviation = statistics.fmean(gains), statistics.stdev(gains)
    found = f"Here: {gain:+.1f} ± {deviation:.1f} over {len(gains)} seeds,"
    if abs(gain) <= deviation:
        return f"{said} {found} which does not tell them apart."
    return f"{said} {found} " + ("as in the paper." if gain > 0 else "**unlike the paper.**")


def draw(scores: Scores, folder: Path) -> None:
    """One SVG per experiment: a point per seed and the mean.

    Raises:
        SystemExit: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise SystemExit("plots need matplotlib: pip install -e '.[experiments]'") from error
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "experiments"  # the same figures give the same file
    import matplotlib.pyplot as plt

    for experiment in EXPERIMENTS:
        if not _compares(experiment, scores):
            continue
        figure, axes = plt.subplots(
            figsize=(7, 0.5 * len(experiment.variants) + 1), layout="constrained"
        )
        _draw_points(axes, experiment, scores)
        figure.savefig(folder / f"{experiment.name}.svg", metadata={"Date": None})
        plt.close(figure)


def _draw_points(axes: Any, experiment: Experiment, scores: Scores) -> None:
    for row, name in enumerate(experiment.variants):
        values = list(scores[name].values())
        axes.scatter(values, [row] * len(values), s=24, color="#0b6e4f", zorder=2)
        if values:
            mean = statistics.fmean(values)
            axes.plot([mean, mean], [row - 0.25, row + 0.25], color="#e08e45", linewidth=2)
    labels = list(experiment.variants.values())
    axes.set_yticks(range(len(labels)), labels)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel="mIoU (%): seeds and their mean")
