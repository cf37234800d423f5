"""Writes the tables of measured figures in README.md and docs/ from the files under results/."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from committed import (
    MODELS,
    NATIVE,
    PLAIN,
    SCALING,
    Case,
    committed_runs,
    growths,
    read_all_cases,
    read_cases,
)

ROOT = Path(__file__).resolve().parents[2]
PEER = "transformers"
LOADER, STEP = "loader", "training_step"
COMPILE = "compile"
HEADROOM = 2
"""How many times as many images as a training step consumes the loader should prepare."""


AT_A_GLANCE = (
    *("criterion, A ADE20K 4x512x512", "criterion, B COCO 1x800x1344"),
    *("matching_cost, A ADE20K 4x512x512", "mask_loss, A ADE20K 4x512x512"),
    *("assignment, a 96x100x20", "assignment, e 8x512x512"),
    *("segmentation, B K=150 1024x2048", "segmentation, E panoptic 800x1088"),
    *("conv3x3, pixel decoder 2x256x128x128", "assignment, 576x100x(1..40)"),
    *("training_step, R50 2x512x512", "training_step, Swin-T 2x512x512"),
    *("training_step, R50 16x512x512", "training_step, Swin-T 16x512x512"),
    *("inference, R50 1x512x683", "loader, worker 16 images of 512x683"),
)
"""Cases shown in the README."""


def operations(shown: Collection[str] = ()) -> str:
    """A table row per case: this project, the plain path that it replaces, the best other provider.

    Covers all cases, or only those in `shown` if it is not empty.
    """
    lines = [
        "| operation, case | on | mfkernels | plain path | ratio | best other |",
        "|---|---|---|---|---|---|",
    ]
    for file in committed_runs():
        machine, cases = read_cases(file)
        lines += [
            _line(case, machine)
            for case in cases
            if case.operation not in (*MODELS, SCALING) and (not shown or case.label in shown)
        ]
    return "\n".join(lines)


def _line(case: Case, machine: str) -> str:
    name, ms = case.best_other()
    beside = f"{_rounded(ms)} ms ({name})" if name else ""
    return (
        f"| {case.label} | {machine} | {_rounded(case.native)} ms "
        f"| {_rounded(case.plain, 4)} ms | {case.plain / case.native:.1f}× | {beside} |"
    )


def _rounded(value: float, digits: int = 3) -> str:
    """A number rounded to `digits` significant digits, without an exponent: 25390, 0.135."""
    return f"{float(f'{value:.{digits}g}'):g}"


def models(shown: Collection[str] = ()) -> str:
    """A table row per case and provider of operations on whole images.

    Covers all cases, or only those in `shown` if it is not empty, then without compiled providers.
    """
    lines = [
        "| case | by | on | time | images/s | peak memory | parts, ms | against transformers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in committed_runs():
        machine, cases = read_all_cases(file)
        for case in cases:
            if case.operation in MODELS and (not shown or case.label in shown):
                lines += [
                    _model_line(case, name, machine)
                    for name in case.rows
                    if not (shown and name.endswith(COMPILE))
                ]
    return "\n".join(lines)


def loader() -> str:
    """Text on a loader worker's throughput and the number of workers needed to keep up."""
    return "\n\n".join(_loader_texts())


def _model_line(case: Case, provider: str, machine: str) -> str:
    row = case.rows[provider]
    ratio = ""
    if PEER in case.rows:
        ratio = f"{case.rows[PEER]['p50_ms'] / row['p50_ms']:.2f}×"
    peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
    cells = [
        case.label,
        "plain path" if provider in PLAIN else provider.replace(NATIVE, "mfkernels"),
        *(machine, f"{_rounded(row['p50_ms'], 4)} ms", _rate(row), peak, _parts(row), ratio),
    ]
    return f"| {' | '.join(cells)} |"


def _rate(row: dict[str, Any]) -> str:
    return _rounded(row["images_per_s"]) if row.get("images_per_s") else ""


def _parts(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {ms:.0f}" for name, ms in (row.get("parts_ms") or {}).items())


def _loader_texts() -> list[str]:
    """One text per measured loader: its throughput, and the workers that training steps need."""
    runs = [read_all_cases(file) for file in committed_runs()]
    texts = []
    for machine, cases in runs:
        workers = (c for c in cases if c.operation == LOADER and c.name.split()[0] == "worker")
        for worker in workers:
            row = worker.rows[NATIVE]
            rate = row["images_per_s"] * row["p50_ms"] / row["cpu_ms"]
            needed: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
            for on, others in runs:
                for taken in _steps(others):
                    needed[on, math.ceil(HEADROOM * taken / rate)].append(taken)
            workers_of_steps = "; ".join(
                f"{number} {'worker' if number == 1 else 'workers'} for steps of {_span(taken)} "
                f"images/s ({on})"
                for (on, number), taken in sorted(needed.items())
            )
            texts.append(
                f"One worker of the training loader prepares {_rounded(rate)} images per second of "
                f"its processor ({machine}).\nTo prepare {HEADROOM} times as many images as the "
                f"training steps take:\n{workers_of_steps}."
            )
    return texts


def _span(values: list[float]) -> str:
    low, high = _rounded(min(values)), _rounded(max(values))
    return low if low == high else f"{low} to {high}"


def _steps(cases: list[Case]) -> list[float]:
    """Images per second of the training steps, for each setting of this project."""
    settings = (one for case in cases if case.operation == STEP for one in case.settings())
    return [1e3 * _images(case.name) / case.native for case in settings]


def _images(name: str) -> int:
    """The number of images in a case's name, such as 2 in `R50 2x512x512`."""
    (images,) = re.findall(r"\b(\d+)x\d+x\d+", name)
    return int(images)


def scaling() -> str:
    """A table row per scaling series: the fitted exponents, and that of the dominant term."""
    lines = [
        "| time over size | on | mfkernels | plain path | expected, at most | largest size |",
        "|---|---|---|---|---|---|",
    ]
    for file in committed_runs():
        machine, cases = read_all_cases(file)
        for growth in growths(case for case in cases if case.operation == SCALING):
            exponents = [f"{growth.slope(name):.2f}" for name in (NATIVE, PLAIN[0])]
            size, ms, _ = growth.points[NATIVE][-1]
            _, plain, _ = growth.points[PLAIN[0]][-1]
            cells = [growth.name, machine, *exponents, f"{growth.expected:g}"]
            cells.append(f"{size:g}: {_rounded(ms)} ms against {_rounded(plain)} ms")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "operations": partial(operations, AT_A_GLANCE),
        "models": partial(models, AT_A_GLANCE),
    },
    "docs/benchmarks.md": {
        "operations": operations,
        "models": models,
        "loader": loader,
        "growth": scaling,
    },
}
"""For each page, the table generators by marker: a table goes between the comments
`<!-- marker -->` and `<!-- end of marker -->`.
"""


def update(page: str) -> str:
    """The text of a page with up-to-date tables between its markers."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for mark, table in PAGES[page].items():
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(update(page), encoding="utf-8")
