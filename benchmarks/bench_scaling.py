"""How time scales with each problem size: the summary prints a fitted exponent for every series.

The criterion with its backward pass is varied in pixels, images, segments, queries and classes;
semantic inference in pixels, queries and classes. A fitted exponent should not exceed that of the
dominant term. On a CPU the fit uses CPU time; run with `--threads 1`, or threads that spin while
they wait are counted as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import bench_criterion
import bench_segmentation
import torch
from harness.comparison import NATIVE, REFERENCE, Comparison, Series
from harness.inputs import CaseSizes
from harness.plugin import comparison_test

BASE = CaseSizes(1, (64, 64), (256, 256), classes=50, segments=8, layers=1, channels=32)
SIDES = (32, 64, 128)
SEGMENTATION = bench_segmentation.Sizes(50, (256, 256), (((256, 256), (256, 256)),))
LINEAR = 1.0


def with_side(sizes: CaseSizes, side: int) -> CaseSizes:
    return replace(sizes, low=(side, side), size=(4 * side, 4 * side))


def maps(side: int) -> bench_segmentation.Sizes:
    size = (4 * side, 4 * side)
    return replace(SEGMENTATION, size=size, inputs=((size, size),))


def varied(sizes: Any, **values: tuple[int, ...]) -> dict[int, Any]:
    ((field, counts),) = values.items()
    return {count: replace(sizes, **{field: count}) for count in counts}


@dataclass(frozen=True)
class Growth:
    """An operation, its inputs for each size, and the exponent expected of its dominant term."""

    operation: Callable[[Any, torch.device], Comparison]
    sizes: dict[int, Any]
    expected: float = LINEAR


CRITERION = bench_criterion.comparison
INFERENCE = bench_segmentation.comparison
SERIES = {
    "criterion over pixels": Growth(CRITERION, {16 * s * s: with_side(BASE, s) for s in SIDES}),
    "criterion over images": Growth(CRITERION, varied(BASE, images=(1, 2, 4))),
    "criterion over segments": Growth(CRITERION, varied(BASE, segments=(4, 16, 64))),
    "criterion over queries": Growth(CRITERION, varied(BASE, queries=(64, 128, 256))),
    "criterion over classes": Growth(CRITERION, varied(BASE, classes=(50, 200, 800))),
    "segmentation over pixels": Growth(INFERENCE, {16 * s * s: maps(s) for s in SIDES}),
    "segmentation over queries": Growth(INFERENCE, varied(SEGMENTATION, queries=(50, 100, 200))),
    "segmentation over classes": Growth(INFERENCE, varied(SEGMENTATION, classes=(50, 150, 450))),
}
CASES = {
    f"{name.replace(' ', '-')}-{size} {name}, {size}": (name, size)
    for name, growth in SERIES.items()
    for size in growth.sizes
}


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    name, size = CASES[case]
    growth = SERIES[name]
    size = min(growth.sizes) if shrink else size
    comparison = growth.operation(growth.sizes[size], device)
    return replace(comparison, series=Series(name, size, growth.expected))


test_scaling = comparison_test(CASES, [NATIVE, REFERENCE], make)
