"""How the time grows with each size: series of cases whose exponents the summary prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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


Build = Callable[[torch.device], Comparison]
SERIES: dict[str, dict[int, Build]] = {
    **{
        f"{operation} over pixels": {
            side * side: lambda device, side=side, of=of: of(with_side(BASE, side), device)
            for side in SIDES
        }
        for operation, of in (
            ("mask_loss", bench_mask_loss.comparison),
            ("matching_cost", bench_matching_cost.comparison),
        )
    },
    "mask_loss over segments": {
        count: lambda device, n=count: bench_mask_loss.comparison(replace(BASE, segments=n), device)
        for count in (4, 16, 64)
    },
    "matching_cost over queries": {
        count: lambda device, n=count: bench_matching_cost.comparison(
            replace(BASE, queries=n), device
        )
        for count in (50, 100, 200)
    },
    "mask_loss over images": {
        count: lambda device, n=count: bench_mask_loss.comparison(replace(BASE, images=n), device)
        for count in (1, 2, 4)
    },
    "segmentation over classes": {
        count: lambda device, n=count: bench_segmentation.comparison(
            replace(SEGMENTATION, classes=n), device
        )
        for count in (50, 150, 450)
    },
    "segmentation over pixels": {
        16 * side * side: lambda device, side=side: bench_segmentation.comparison(
            maps(side), device
        )
        for side in SIDES
    },
}
CASES = {
    f"{name.replace(' ', '-')}-{size} {name}, {size}": (name, size)
    for name, builds in SERIES.items()
    for size in builds
}


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    name, size = CASES[case]
    size = min(SERIES[name]) if shrink else size
    return replace(SERIES[name][size](device), series=(name, size))


test_growth = comparison_test(CASES, [NATIVE, REFERENCE], make)
