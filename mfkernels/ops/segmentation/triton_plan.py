"""How the semantic result of an image is cut into tiles, queries and classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

from mfkernels.ops.segmentation.triton_kernels import View
from mfkernels.ops.segmentation.triton_logits_by_pixel import columns_of
from mfkernels.ops.segmentation.triton_patch import Patch, Resizing, Tile
from mfkernels.triton.launcher import cdiv, power_of_2

Size = tuple[int, int]

AT_ONCE = 128
"""The most queries whose sigmoids the registers hold."""
PIECE = 32
"""Queries at a time where there are more, or several views; also those of the guess."""
LARGEST_PATCH = 64
TILE_SIDES = 8, 16
CLASSES = 32
TUNED: dict[str, Any] = {}


@dataclass(frozen=True)
class Plan:
    views: list[View]
    elements: int
    """Of the logits of all views."""
    rows: int
    """Of the probabilities of all views."""
    class_columns: int
    classes: int
    """At a time."""
    at_once: bool
    pieces: tuple[int, ...]
    resizing: Resizing
    tile: Tile
    tiles: Size
    """Across and down."""
    patch: Patch

    def options(self) -> dict[str, Any]:
        # Two programs share a multiprocessor where 128 registers suffice.
        lean = 0 < self.patch.size <= 32 and not (self.resizing.resized and self.resizing.logits)
        return {"num_warps": 8, "num_stages": 2, "maxnreg": 128 if lean else 255, **TUNED}


def plan_of(
    frames: list[View], queries: list[int], classes: int, size: Size, resize_logits: bool
) -> Plan:
    at_once = len(frames) == 1 and queries[0] <= AT_ONCE
    resized = any((v.image_height, v.image_width) != size for v in frames)
    tile, patch = _tile_and_patch(frames, size, resized)
    views, elements, rows = [], 0, 0
    for view, count in zip(frames, queries, strict=True):
        columns = columns_of(count, 16 if at_once else PIECE)
        place = {"first_block": elements // 16, "first_row": rows, "columns": columns}
        views.append(view._replace(**place))
        elements += view.mask_height * view.mask_width * columns * (2 if patch.size else 1)
        rows += columns
    pieces = _powers_of_2(rows, 32 if resized else 64) if at_once else (PIECE,)
    return Plan(
        views=views,
        elements=elements,
        rows=rows,
        class_columns=cdiv(classes, CLASSES) * CLASSES,
        classes=CLASSES,
        at_once=at_once,
        pieces=pieces,
        resizing=Resizing(resized, resize_logits),
        tile=tile,
        tiles=(cdiv(size[1] + tile.left, tile.width), cdiv(size[0] + tile.up, tile.height)),
        patch=patch,
    )


def _powers_of_2(n: int, largest: int) -> tuple[int, ...]:
    """Powers of 2 whose sum is n, the largest first."""
    rest = n % largest
    some = (1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1)
    return (largest,) * (n // largest) + tuple(some)


def _tile_and_patch(views: list[View], size: Size, resized: bool) -> tuple[Tile, Patch]:
    vertical = [(v.mask_height, v.input_height, v.image_height) for v in views]
    horizontal = [(v.mask_width, v.input_width, v.image_width) for v in views]
    height, width = TILE_SIDES
    up, rows = _shift_and_span(vertical, size[0], height, resized, False)
    left, columns = _shift_and_span(
        horizontal, size[1], width, resized, any(v.flipped for v in views)
    )
    patch = power_of_2(rows * columns, 16)
    if patch > LARGEST_PATCH:
        return Tile(height, width, 0, 0), Patch(0, 0, False)
    exact = all(_is_power_of_2(n, m) for m, n, _ in vertical + horizontal)
    return Tile(height, width, up, left), Patch(patch, columns, exact)


def _is_power_of_2(size: int, mask: int) -> bool:
    """Whether weights are multiples of 1/32: their products have ten bits."""
    ratio, rest = divmod(size, mask)
    return rest == 0 and ratio in (1, 2, 4, 8, 16)


def _shift_and_span(
    axes: list[tuple[int, int, int]], result: int, side: int, resized: bool, mirrored: bool
) -> tuple[int, int]:
    """How many pixels before the result tiles begin, and how many mask pixels one reads at most.

    `axes`: size of the mask, of the input and of the image in each view.
    """
    if not resized:
        ratios = {n // m if n % m == 0 else 1 for m, n, _ in axes}
        ratio = max(ratios)
        aligned = result % ratio == 0 or not mirrored
        if len(ratios) == 1 and ratio % 2 == 0 and side % ratio == 0 and aligned:
            return ratio // 2, side // ratio + 1
        return 0, max(floor((side - 1) * m / n) + 3 for m, n, _ in axes)
    spans = []
    for m, n, image in axes:
        inputs = floor((side - 1) * image / result) + 3
        spans.append(floor((inputs - 1) * m / n) + 3)
    return 0, max(spans)
