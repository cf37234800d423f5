"""How the semantic result of an image is cut into tiles, queries and classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import NamedTuple

from mfkernels.ops.segmentation.triton_kernels import View
from mfkernels.ops.segmentation.triton_logits_by_pixel import columns_of
from mfkernels.ops.segmentation.triton_patch import Patch, Tile, Variant
from mfkernels.triton.devices import Generation, Gpu
from mfkernels.triton.launcher import cdiv, power_of_2

Size = tuple[int, int]

AT_ONCE = 128
"""The most queries whose sigmoids the registers hold."""
WHOLE = 96
"""From more queries on, `AT_ONCE` are one piece: fewer products, of more that are empty; on matrix
units that take factors from shared memory."""
PIECE = 32
"""Queries at a time where there are more, or several views."""
SMALL_PIECE = 16
"""The same where products are formed in registers."""
LARGEST_PATCH = 64
"""Mask pixels of a tile that are interpolated on tensor cores."""
TILE_SIDES = 8, 8
"""Pixels of the result that a program takes, down and across."""
SMALL_TILE_SIDES = 4, 8
"""The same where products are formed in registers."""
MANY_CLASSES = 256
"""From which on larger blocks of classes pay, though more of the last one is empty; but not where
registers hold factors, too."""
MOST_OF_RESIZED, MOST_OF_MANY = 128, 64
"""Classes at a time where each block of them needs all sigmoids again, on matrix units that take
both factors from shared memory: of resized scores, and else of many queries or views."""


class Options(NamedTuple):
    resize_logits: bool
    scores: bool
    gpu: Gpu


@dataclass(frozen=True)
class Plan:
    views: list[View]
    elements: int
    """Of the logits of all views."""
    rows: int
    """Of the probabilities of all views."""
    class_columns: int
    variant: Variant
    gpu: Gpu
    pieces: tuple[int, ...]
    tile: Tile
    tiles: Size
    """Across and down."""
    patch: Patch

    def options(self) -> dict[str, int]:
        """Of the compiler, so that three or four programs share a multiprocessor."""
        variant = self.variant
        simple = variant.at_once and not variant.resized and variant.classes <= 32
        simple &= self.pieces != (AT_ONCE,)
        spacious = variant.scores or not 0 < self.patch.size <= 32
        # There, tensor cores keep sums elsewhere, on the way to which more registers are in use.
        factors = self.gpu.generation.factors
        spacious |= factors is None or (variant.resized and factors == "tensor memory")
        spacious |= factors == "registers" and (variant.resized or not variant.at_once)
        spacious |= variant.classes > 64
        return {
            "num_warps": 8 if factors is None else 4,
            "num_stages": 3 if variant.classes <= 32 else 2,
            "maxnreg": 255 if spacious else 128 if simple else 168,
        }


def plan_of(
    frames: list[View], queries: list[int], classes: int, size: Size, options: Options
) -> Plan:
    """`frames`: the views, whose offsets in the workspaces are not known yet."""
    gpu = options.gpu.generation
    in_registers = gpu.factors is None
    piece = SMALL_PIECE if in_registers else PIECE
    at_once = not in_registers and len(frames) == 1 and queries[0] <= AT_ONCE
    resized = any((v.image_height, v.image_width) != size for v in frames)
    block = _classes_at_a_time(classes, at_once, resized, gpu)
    variant = Variant(resized, options.resize_logits, options.scores, at_once, block)
    sides = SMALL_TILE_SIDES if in_registers else TILE_SIDES
    tile, patch = _tile_and_patch(frames, size, variant, sides)
    pieces = _pieces(queries[0], variant, patch, gpu) if at_once else (piece,)
    views, elements, rows = [], 0, 0
    for view, count in zip(frames, queries, strict=True):
        columns = sum(pieces) if at_once else columns_of(count, piece)
        views.append(view._replace(first_block=elements // 16, first_row=rows, columns=columns))
        elements += view.mask_height * view.mask_width * columns * (2 if patch.size else 1)
        rows += columns
    return Plan(
        views=views,
        elements=elements,
        rows=rows,
        class_columns=cdiv(classes, block) * block,
        variant=variant,
        pieces=pieces,
        gpu=options.gpu,
        tile=tile,
        tiles=(cdiv(size[1] + tile.left, tile.width), cdiv(size[0] + tile.up, tile.height)),
        patch=patch,
    )


def _classes_at_a_time(classes: int, at_once: bool, resized: bool, gpu: Generation) -> int:
    if not at_once and gpu.factors == "shared memory":
        return min(power_of_2(classes, 32), MOST_OF_RESIZED if resized else MOST_OF_MANY)
    return 64 if classes >= MANY_CLASSES and gpu.factors not in (None, "registers") else 32


def _pieces(queries: int, variant: Variant, patch: Patch, gpu: Generation) -> tuple[int, ...]:
    """Into which the queries of the only view are divided, and as many columns as they take."""
    rows = columns_of(queries, 16)
    in_one = gpu.factors == "shared memory" and variant.classes <= 32 and patch.size > 0
    if in_one and rows > WHOLE and not variant.resized:
        return (AT_ONCE,)
    return _powers_of_2(rows, 32 if variant.resized else 64)


def _powers_of_2(n: int, largest: int) -> tuple[int, ...]:
    """Powers of 2 whose sum is n, the largest first."""
    rest = n % largest
    powers = (1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1)
    return (largest,) * (n // largest) + tuple(powers)


def _tile_and_patch(
    views: list[View], size: Size, variant: Variant, sides: Size
) -> tuple[Tile, Patch]:
    vertical = [(v.mask_height, v.input_height, v.image_height) for v in views]
    horizontal = [(v.mask_width, v.input_width, v.image_width) for v in views]
    height, width = sides
    if variant.resized:
        up, rows = 0, _span_of_resized(vertical, size[0], height)
        left, columns = 0, _span_of_resized(horizontal, size[1], width)
    else:
        mirrored = any(v.flipped for v in views)
        up, rows = _shift_and_span(vertical, size[0], height, False)
        left, columns = _shift_and_span(horizontal, size[1], width, mirrored)
    patch = power_of_2(rows * columns, 16)
    if patch > LARGEST_PATCH:
        return Tile(height, width, 0, 0), Patch(0, 0, False)
    summed = variant.resized and variant.resize_logits
    exact = not summed and all(
        n in {r * m for r in (1, 2, 4, 8, 16)} for m, n, _ in vertical + horizontal
    )
    return Tile(height, width, up, left), Patch(patch, columns, exact)


Axis = tuple[int, int, int]
"""Of a view: size of the mask, of the input and of the image."""


def _shift_and_span(axes: list[Axis], result: int, side: int, mirrored: bool) -> tuple[int, int]:
    """How many pixels before the result tiles begin, and how many mask pixels one reads at most.

    At a whole even ratio, tiles that begin half a mask pixel earlier read one less.
    """
    ratios = {n // m if n % m == 0 else 1 for m, n, _ in axes}
    ratio = max(ratios)
    aligned = result % ratio == 0 or not mirrored
    if len(ratios) == 1 and ratio % 2 == 0 and side % ratio == 0 and aligned:
        return ratio // 2, side // ratio + 1
    return 0, max(floor((side - 1) * m / n) + 3 for m, n, _ in axes)


def _span_of_resized(axes: list[Axis], result: int, side: int) -> int:
    """How many mask pixels a tile of a resized image reads at most."""
    inputs = [floor((side - 1) * image / result) + 3 for _, _, image in axes]
    return max(
        floor((count - 1) * m / n) + 3 for count, (m, n, _) in zip(inputs, axes, strict=True)
    )
