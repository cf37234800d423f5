"""The target pixels of cells: what the mask loss sums over them.

Cell (i, j) is the square between the four mask pixels (i, j), (i, j+1), (i+1, j) and (i+1, j+1),
from which all its target pixels are interpolated. Cells −1 and h−1 (w−1) hang over the edge, where
interpolation repeats the edge pixel: (h+1)(w+1) cells in all.

Where targets are four times as large as masks, a cell holds 4 x 4 target pixels. Of a cell over the
edge two of four lines are missing; the other two, along which the logit is constant, are visited
twice and count half. So no pixel needs a mask.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mfkernels.triton.arguments import unspecialized
from mfkernels.triton.math import (
    exp2,
    if_also,
    minus_log2_of_rest,
    plain,
    reciprocal,
    segments_of_image,
)


class Axis(NamedTuple):
    """Masks and targets along one axis, and the weights at target pixels.

    The weight of a cell's second mask pixel is `start` plus `step` times the phase where the ratio
    of the sizes is a whole number, else `step` times a numerator.
    """

    size: int
    target_size: int
    phases: int
    """The most target pixels of a cell."""
    step: float
    start: float


class Resize(NamedTuple):
    """Masks `[h, w]` and targets `[H, W]`, by axis."""

    y: Axis
    x: Axis

    def as_argument(self) -> Resize:
        """As kernels take it: `plain` gives them the sizes of the mask."""
        return Resize(*(axis._replace(size=unspecialized(axis.size)) for axis in self))


class Variant(NamedTuple):
    """What kernels are compiled for."""

    factored: bool
    label_map: bool
    square: bool
    whole: bool
    """The ratio of the sizes of target and mask is a whole number along both axes."""
    four: bool
    """It is four, and `segments_ptr` points to pairs of pixels."""
    sums: bool = True
    """The sums over pixels are asked for."""
    maps: int = 0
    """How many maps at mask resolution are asked for: none, the gradient, or its three parts."""


class Block(NamedTuple):
    """How many cells of a row a program takes, and how many images it counts at a time."""

    cells: int
    images: int


class Maps(NamedTuple):
    """Of each map, what a pixel adds to it, or its sums over target pixels."""

    focal: Any
    signed: Any
    """Of the dice loss, negative at pixels of the segment."""
    dice: Any


class LineSums(NamedTuple):
    """A line's sum, and that with the weights of the right mask pixels."""

    total: Any
    right: Any


class CellSums(NamedTuple):
    """Of each map, the sums of a cell's lines, and those with the weights of the lower pixels."""

    lines: Maps
    lower: Maps


class MapWeights(NamedTuple):
    """Of the maps in the gradient of the logits; `members`: of twice the sum over them."""

    focal: Any
    members: Any
    dice: Any


class Sums(NamedTuple):
    """What pixels add to the losses; `miss`: 1 less the probability of the pixel's own label."""

    focal: Any
    miss: Any
    signed: Any
    """The misses, negative at pixels of the segment."""


class Totals(NamedTuple):
    """`Sums`, and how many pixels are of the segment."""

    focal: Any
    miss: Any
    signed: Any
    members: Any


class Targets(NamedTuple):
    """Where a column of cells begins in the targets, and the segment that is looked for."""

    segments_ptr: Any
    cell_x: Any
    first_x: Any
    segment: Any


LN_2 = tl.constexpr(0.6931471805599453)
NOWHERE = tl.constexpr(1e30)
"""`−log₂ e` times the logit of a pixel that does not exist: it is no one's, and adds nothing."""


@triton.jit
def first_target_pixel(cell, axis):
    """The first target pixel in a cell: ⌈((2 cell + 1) target_size − size) / (2 size)⌉.

    It may be negative.
    """
    above_zero = axis.phases + 1
    size = plain(axis.size)
    numerator = (2 * cell + 1) * axis.target_size + size - 1 + 2 * size * above_zero
    return numerator // (2 * size) - above_zero


@triton.jit
def target_pixel(cell, first, phase, axis, WHOLE: tl.constexpr):
    """Index of the target pixel, weight of the cell's second mask pixel, and whether it exists.

    Where the ratio of the sizes is a whole number, the weight depends on the phase alone. Over the
    edge the whole weight is that of the mask pixel that is inside.
    """
    index = first + phase
    exists = (index >= 0) & (index < axis.target_size)
    if WHOLE:
        weight = phase * axis.step + axis.start
    else:
        numerator = (2 * index + 1) * plain(axis.size) - (2 * cell + 1) * axis.target_size
        weight = numerator.to(tl.float32) * axis.step
        exists = exists & (numerator < 2 * axis.target_size)
    weight = tl.where(cell < 0, 1.0, tl.where(cell == plain(axis.size) - 1, 0.0, weight))
    return index, weight, exists


@triton.jit
def line_of_cell(cell, phase: tl.constexpr, target_size):
    """The line of 4 x 4 target pixels of a cell; of a cell over the edge, two lines twice."""
    line = 4 * cell + 2 + phase
    if phase < 2:
        return tl.where(cell < 0, phase, line)
    return tl.minimum(line, target_size - 4 + phase)


@triton.jit
def weights_of_lines(over):
    """The weights of a cell's second mask pixel at four lines: halves over the edge."""
    return (
        tl.where(over, 0.5, 0.125),
        tl.where(over, 0.5, 0.375),
        tl.where(over, 0.5, 0.625),
        tl.where(over, 0.5, 0.875),
    )


@triton.jit
def pairs_of_line(pairs_ptr, cell_y, cell_x, phase: tl.constexpr, inside, resize):
    """The four target pixels of a line of cells, two in an integer, little end first."""
    y = line_of_cell(cell_y, phase, resize.y.target_size)
    line_ptr = pairs_ptr + y.to(tl.int64) * (resize.x.target_size // 2)
    left = line_of_cell(cell_x, 0, resize.x.target_size) // 2
    right = line_of_cell(cell_x, 2, resize.x.target_size) // 2
    first = tl.load(line_ptr + left, mask=inside, other=0).to(tl.int32)
    return first, tl.load(line_ptr + right, mask=inside, other=0).to(tl.int32)


@triton.jit
def pairs_of_cell(pairs_ptr, cell_y, cell_x, inside, resize):
    """The 4 x 4 target pixels of cells, by line."""
    return (
        pairs_of_line(pairs_ptr, cell_y, cell_x, 0, inside, resize),
        pairs_of_line(pairs_ptr, cell_y, cell_x, 1, inside, resize),
        pairs_of_line(pairs_ptr, cell_y, cell_x, 2, inside, resize),
        pairs_of_line(pairs_ptr, cell_y, cell_x, 3, inside, resize),
    )


@triton.jit(do_not_specialize=["num_segments"])
def members_kernel(
    pairs_ptr,
    counts_ptr,
    members_ptr,
    num_segments,
    resize,
    LABEL_MAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`members [N, h+1, w+1]`: which of the 4 x 4 target pixels of a cell are of a segment.

    One bit a pixel, and above them how many there are. `pairs_ptr`: two pixels an integer.
    """
    CELLS: tl.constexpr = BLOCK.cells
    height, width = plain(resize.y.size), plain(resize.x.size)
    image = tl.program_id(1)
    count, first = segments_of_image(counts_ptr, image, BLOCK.images)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    cells = (height + 1) * (width + 1)
    inside = cell < cells
    cell_y, cell_x = cell // (width + 1) - 1, cell % (width + 1) - 1
    pairs = tl.full([], resize.y.target_size, tl.int64) * (resize.x.target_size // 2)
    if LABEL_MAP:
        stored = pairs_of_cell(pairs_ptr + image * pairs, cell_y, cell_x, inside, resize)
    for segment in range(tl.minimum(count, num_segments - first)):
        if not LABEL_MAP:
            owner_ptr = pairs_ptr + (first + segment) * pairs
            stored = pairs_of_cell(owner_ptr, cell_y, cell_x, inside, resize)
        word = tl.zeros([CELLS], tl.int32)
        for pair in tl.static_range(8):
            two = stored[pair // 2][pair % 2]
            if LABEL_MAP:
                two = two ^ (segment | (segment << 16))
                low, high = (two & 0xFFFF) == 0, (two & -65536) == 0
            else:
                low, high = (two & 0x00FF) != 0, (two & 0xFF00) != 0
            word += tl.where(low, 65536 + (1 << (2 * pair)), 0)
            word += tl.where(high, 65536 + (2 << (2 * pair)), 0)
        index = tl.cast(first + segment, tl.int64)
        tl.store(members_ptr + index * cells + cell, word, mask=inside)


@triton.jit
def pixel(z, sign, focal, map_weights, VARIANT: tl.constexpr):
    """Σ terms of a pixel, and those of the maps.

    `z`: −log₂ e times the logit, times `sign`, −1 in the segment and 1 elsewhere.
    """
    positive, negative, gamma = focal.positive_weight, focal.negative_weight, focal.gamma
    miss = reciprocal(1.0 + exp2(z))
    hit = 1.0 - miss
    log1p = minus_log2_of_rest(tl.minimum(miss, hit))
    entropy = tl.maximum(-z, 0.0) + log1p
    scale = miss * miss if VARIANT.square else exp2(-gamma * (tl.maximum(z, 0.0) + log1p))
    scale *= 0.5 * (negative + positive) + sign * (0.5 * (negative - positive))
    sums = Sums(scale * entropy, miss, sign * miss)
    of_focal = sign * (scale * (gamma * LN_2 * (hit * entropy) + miss))
    of_dice = miss - miss * miss
    if VARIANT.maps == 1:
        of_focal = (
            map_weights.focal * of_focal
            + (map_weights.dice + map_weights.members * (1.0 - sign)) * of_dice
        )
    return sums, Maps(of_focal, sign * of_dice, of_dice)


@triton.jit
def plus(a, b):
    """The sums of both."""
    return Sums(a.focal + b.focal, a.miss + b.miss, a.signed + b.signed)


@triton.jit
def plus_part(a, part, b):
    """The totals of one and of a part of the other."""
    return Totals(
        a.focal + part * b.focal,
        a.miss + part * b.miss,
        a.signed + part * b.signed,
        a.members + part * b.members,
    )


@triton.jit
def plus_value(line, weight, value):
    return LineSums(line.total + value, line.right + weight * value)


@triton.jit
def plus_pixel(line, weight, values):
    """Of each map, the sums of a line with those of one more pixel; `weight`: its right one."""
    return Maps(
        plus_value(line.focal, weight, values.focal),
        plus_value(line.signed, weight, values.signed),
        plus_value(line.dice, weight, values.dice),
    )


@triton.jit
def plus_sums(a, b):
    return LineSums(a.total + b.total, a.right + b.right)


@triton.jit
def plus_weighted(a, weight, b):
    return LineSums(a.total + weight * b.total, a.right + weight * b.right)


@triton.jit
def plus_line(cell, weight, line):
    """The sums of a cell with those of one more line; `weight`: of its lower mask pixels."""
    lines = Maps(
        plus_sums(cell.lines.focal, line.focal),
        plus_sums(cell.lines.signed, line.signed),
        plus_sums(cell.lines.dice, line.dice),
    )
    lower = Maps(
        plus_weighted(cell.lower.focal, weight, line.focal),
        plus_weighted(cell.lower.signed, weight, line.signed),
        plus_weighted(cell.lower.dice, weight, line.dice),
    )
    return CellSums(lines, lower)


@triton.jit
def no_line(zero):
    sums = LineSums(zero, zero)
    return Maps(sums, sums, sums)


@triton.jit
def no_lines(zero):
    return CellSums(no_line(zero), no_line(zero))


@triton.jit
def cell_of_four(corners, word, edges, focal, map_weights, VARIANT: tl.constexpr):
    """The sums of the 4 x 4 target pixels of a cell, and for the maps, those by corner."""
    x00, x01, x10, x11 = corners
    over_y, weights_x = edges
    # x + (−0) is x, for the compiler too: a line begins without an addition.
    zero = tl.full(x00.shape, -0.0, tl.float32)
    x_down, x_step = x10 - x00, x01 - x00
    x_step_down = (x11 - x10) - x_step
    sums = Sums(zero, zero, zero)
    maps = no_lines(zero)
    for phase_y in range(4):  # unrolled, it would take too many registers
        weight_y = tl.where(over_y, 0.5, 0.125 + 0.25 * phase_y)
        line_left = x00 + weight_y * x_down
        line_step = x_step + weight_y * x_step_down
        line = no_line(zero)
        for phase_x in tl.static_range(4):
            sign = tl.where(((word >> (4 * phase_y)) & (1 << phase_x)) != 0, -1.0, 1.0)
            z = sign * (line_left + weights_x[phase_x] * line_step)
            of_sums, of_maps = pixel(z, sign, focal, map_weights, VARIANT)
            sums = plus(sums, of_sums)
            line = plus_pixel(line, weights_x[phase_x], of_maps)
        maps = plus_line(maps, weight_y, line)
    return Totals(sums.focal, sums.miss, sums.signed, (word >> 16).to(tl.float32)), maps


@triton.jit
def cell_of_any(corners, cell_y, targets, resize, focal, map_weights, VARIANT: tl.constexpr):
    """The sums of the target pixels of a cell, and for the maps, those by corner."""
    x00, x01, x10, x11 = corners
    cell_x, first_x = targets.cell_x, targets.first_x
    first_y = first_target_pixel(cell_y, resize.y)
    zero = tl.zeros(x00.shape, tl.float32)
    sums, members = Sums(zero, zero, zero), zero
    maps = no_lines(zero)
    for phase_y in range(resize.y.phases):
        y, weight_y, exists_y = target_pixel(cell_y, first_y, phase_y, resize.y, VARIANT.whole)
        line_left = x00 + weight_y * (x10 - x00)
        line_step = x01 + weight_y * (x11 - x01) - line_left
        line_ptr = targets.segments_ptr + y.to(tl.int64) * resize.x.target_size
        line = no_line(zero)
        for phase_x in range(resize.x.phases):
            x, weight_x, exists = target_pixel(cell_x, first_x, phase_x, resize.x, VARIANT.whole)
            exists = if_also(exists, exists_y)
            stored = tl.load(line_ptr + x, mask=exists, other=-1 if VARIANT.label_map else 0)
            same = stored == targets.segment if VARIANT.label_map else stored != 0
            sign = tl.where(same, -1.0, 1.0)
            z = tl.where(exists, sign * (line_left + weight_x * line_step), NOWHERE)
            of_sums, of_maps = pixel(z, sign, focal, map_weights, VARIANT)
            sums = plus(sums, of_sums)
            members += tl.where(same, 1.0, 0.0)
            line = plus_pixel(line, weight_x, of_maps)
        maps = plus_line(maps, weight_y, line)
    return Totals(sums.focal, sums.miss, sums.signed, members), maps
