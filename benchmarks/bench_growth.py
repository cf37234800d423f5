"""How the time grows with each size: series of cases whose exponents the summary prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bench_mask_loss
import bench_matching_cost
import bench_segmentation
import torch
from harness.comparison import NATIVE, REFERENCE, Comparison
from harness.inputs import CaseSizes
from harness.plugin import comparison_test

BASE = CaseSizes(2, (64, 64), (256, 256), classes=50, segments=8, layers=2, channels=64)
SIDES = (32, 64, 128)
SEGMENTATION = bench_segmentation.Sizes(150, (256, 256), (((256, 256), (256, 256)),))


def with_side(sizes: CaseSizes, side: int) -> CaseSizes:
    return replace(sizes, low=(side, side), size=(4 * side, 4 * side))


def maps(side: int) -> bench_segmentation.Sizes:
    size = (4 * side, 4 * side)
    return replace(SEGMENTATION, size=size, inputs=((size, size),))


def varied(sizes: Any, **values: tuple[int, ...]) -> dict[int, Any]:
    ((field, counts),) = values.items()
    return {count: replace(sizes, **{field: count}) for count in counts}


Operation = Callable[[Any, torch.device], Comparison]
MASK_LOSS: Operation = bench_mask_loss.comparison
MATCHING_COST: Operation = bench_matching_cost.comparison
INFERENCE: Operation = bench_segmentation.comparison
SERIES: dict[str, tuple[Operation, dict[int, Any]]] = {
    "mask_loss over pixels": (MASK_LOSS, {s * s: with_side(BASE, s) for s in SIDES}),
    "matching_cost over pixels": (MATCHING_COST, {s * s: with_side(BASE, s) for s in SIDES}),
    "mask_loss over segments": (MASK_LOSS, varied(BASE, segments=(4, 16, 64))),
    "matching_cost over queries": (MATCHING_COST, varied(BASE, queries=(50, 100, 200))),
    "mask_loss over images": (MASK_LOSS, varied(BASE, images=(1, 2, 4))),
    "segmentation over classes": (INFERENCE, varied(SEGMENTATION, classes=(50, 150, 450))),
    "segmentation over pixels": (INFERENCE, {16 * s * s: maps(s) for s in SIDES}),
}
"""The operation, and by size what it is given."""
CASES = {
    f"{name.replace(' ', '-')}-{size} {name}, {size}": (name, size)
    for name, (_, sizes) in SERIES.items()
    for size in sizes
}


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    name, size = CASES[case]
    operation, sizes = SERIES[name]
    size = min(sizes) if shrink else size
    return replace(operation(sizes[size], device), series=(name, size))


test_growth = comparison_test(CASES, [NATIVE, REFERENCE], make)
