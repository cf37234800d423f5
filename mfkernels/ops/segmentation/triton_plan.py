"""Choose how the semantic result of an image is split into tiles, and the block sizes."""

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

MAX_QUERIES_AT_ONCE = 128
"""The largest number of queries whose sigmoids fit the registers."""
MIN_UNSPLIT_QUERIES = 96
"""With more queries than this, they are one piece of `MAX_QUERIES_AT_ONCE`: fewer but more padded
products are faster on matrix units that read factors from shared memory."""
PIECE = 32
"""The size of a piece if not all queries fit the registers at once, or with several views."""
SMALL_PIECE = 16
"""The same on GPUs without matrix units."""
LARGEST_PATCH = 64
"""The largest number of mask pixels of a tile that are interpolated on tensor cores."""
TILE_SIDES = 8, 8
"""Height and width of a program's tile, in pixels of the result."""
SMALL_TILE_SIDES = 4, 8
"""The same on GPUs without matrix units."""
MANY_CLASSES = 256
"""With at least this many classes, larger blocks of classes are faster despite more padding of the
last one, except without matrix units or where these read factors from registers."""
MAX_CLASSES_RESIZED, MAX_CLASSES_MANY = 128, 64
"""The largest blocks of classes where each block computes all sigmoids again, on matrix units that
read factors from shared memory: for resized scores, and otherwise for many queries or views."""


class Options(NamedTuple):
    resize_logits: bool
    scores: bool
    gpu: Gpu


@dataclass(frozen=True)
class Plan:
    views: list[View]
    elements: int
    """The number of logits of all views, with padding."""
    rows: int
    """The number of queries of all views, with padding: rows of the probabilities."""
    class_columns: int
    variant: Variant
    gpu: Gpu
    pieces: tuple[int, ...]
    tile: Tile
    tiles: Size
    """The number of tiles, across and down."""
    patch: Patch

    def options(self) -> dict[str, int]:
        """The launch options, so that three or four programs share a multiprocessor if possible."""
        variant = self.variant
        simple = variant.at_once and not variant.resized and variant.classes <= 32
        simple &= self.pieces != (MAX_QUERIES_AT_ONCE,)
        many_registers = variant.scores or not 0 < self.patch.size <= 32
        # With tensor memory, accumulators are copied through registers, which takes more of them.
        factors = self.gpu.generation.factors
        many_registers |= factors is None or (variant.resized and factors == "tensor memory")
        many_registers |= factors == "registers" and (variant.resized or not variant.at_once)
        many_registers |= variant.classes > 64
        return {
            "num_warps": 8 if factors is None else 4,
            "num_stages": 3 if variant.classes <= 32 else 2,
            "maxnreg": 255 if many_registers else 128 if simple else 168,
        }


def plan_of(
    frames: list[View], queries: list[int], classes: int, size: Size, options: Options
) -> Plan:
    """Plan the semantic kernel.

    `frames`: the views, whose offsets in the workspaces are still 0. `queries`: the number of
    queries of each view.
    """
    gpu = options.gpu.generation
    in_registers = gpu.factors is None
    piece = SMALL_PIECE if in_registers else PIECE
    at_once = not in_registers and len(frames) == 1 and queries[0] <= MAX_QUERIES_AT_ONCE
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
        return min(power_of_2(classes, 32), MAX_CLASSES_RESIZED if resized else MAX_CLASSES_MANY)
    return 64 if classes >= MANY_CLASSES and gpu.factors not in (None, "registers") else 32


def _pieces(queries: int, variant: Variant, patch: Patch, gpu: Generation) -> tuple[int, ...]:
    """Divide the queries of the only view into pieces, whose sizes are powers of 2."""
    rows = columns_of(queries, 16)
    in_one = gpu.factors == "shared memory" and variant.classes <= 32 and patch.size > 0
    if in_one and rows > MIN_UNSPLIT_QUERIES and not variant.resized:
        return (MAX_QUERIES_AT_ONCE,)
    return _powers_of_2(rows, 32 if variant.resized else 64)


def _powers_of_2(n: int, largest: int) -> tuple[int, ...]:
    """Powers of 2, none above `largest`, whose sum is n; in descending order."""
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
"""The size of a view's mask, input and image along one axis."""


def _shift_and_span(axes: list[Axis], result: int, side: int, mirrored: bool) -> tuple[int, int]:
    """The shift of the tiles, and the largest number of mask pixels that one of them reads.

    The first tile begins `shift` pixels outside the result. If the ratio of input size to mask size
    is an even integer, tiles that are shifted by half a mask pixel read one mask pixel less.
    """
    ratios = {n // m if n % m == 0 else 1 for m, n, _ in axes}
    ratio = max(ratios)
    aligned = result % ratio == 0 or not mirrored
    if len(ratios) == 1 and ratio % 2 == 0 and side % ratio == 0 and aligned:
        return ratio // 2, side // ratio + 1
    return 0, max(floor((side - 1) * m / n) + 3 for m, n, _ in axes)


def _span_of_resized(axes: list[Axis], result: int, side: int) -> int:
    """The largest number of mask pixels that a tile reads if the input is resized to the result."""
    inputs = [floor((side - 1) * image / result) + 3 for _, _, image in axes]
    return max(
        floor((count - 1) * m / n) + 3 for count, (m, n, _) in zip(inputs, axes, strict=True)
    )
