"""The sums of the mask loss over the target pixels of a cell.

Cell (i, j) is the square between the four mask pixels (i, j), (i, j+1), (i+1, j) and (i+1, j+1).
All target pixels inside it are interpolated from these four. Cells −1 and h−1 (w−1) extend beyond
the edge, where interpolation repeats the edge pixel, so that there are (h+1)(w+1) cells in all.

If targets are four times as large as masks, a cell holds 4 x 4 target pixels. A cell at the edge
has only two of its four lines; as the logit is constant across them, these two are visited twice
with half the weight. So no pixel needs a mask.

A line is a line of pixels or cells of an image; a row is a row of the logits, that is, a matched
segment in a layer. z and the entropies use logarithms to base 2.
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
    """Mask and target size along one axis, and the interpolation weights of target pixels.

    The weight of a cell's second mask pixel is `start + step · phase` if the ratio of the sizes is
    an integer (the phase numbers the target pixels of a cell), otherwise `step` times a numerator;
    see `target_pixel`.
    """

    size: int
    target_size: int
    phases: int
    """The largest number of target pixels in a cell."""
    step: float
    start: float


class Resize(NamedTuple):
    """Mask size `[h, w]` and target size `[H, W]`, by axis."""

    y: Axis
    x: Axis

    def as_argument(self) -> Resize:
        """Return the argument of kernels, which decode the mask sizes with `plain`."""
        return Resize(*(axis._replace(size=unspecialized(axis.size)) for axis in self))


class Variant(NamedTuple):
    """The cases that kernels are specialised for."""

    factored: bool
    label_map: bool
    square: bool
    """γ is 2."""
    whole: bool
    """The ratio of target size to mask size is an integer along both axes."""
    four: bool
    """The ratio is 4, and the kernel reads the bit masks of `members_kernel`."""
    sums: bool = True
    """Compute the sums over pixels."""
    maps: int = 0
    """How many maps at mask resolution to store: none, the gradient (1), or its three parts."""


class Block(NamedTuple):
    """Block sizes: the cells of a program, and the counts of images that it sums up at a time."""

    cells: int
    images: int


class Maps(NamedTuple):
    """A value for each of the three parts of the gradient: of a pixel, or summed over pixels.

    The dice loss has two parts, because the derivative of the sigmoid counts with one coefficient
    at all pixels and with another one at pixels of the segment.
    """

    focal: Any
    """The derivative of the focal loss."""
    signed: Any
    """As `dice`, but negative at pixels of the segment."""
    dice: Any
    """The derivative of the sigmoid."""


class LineSums(NamedTuple):
    """The sum over a line of a cell, and the sum weighted for the mask pixels at the right."""

    total: Any
    right: Any


class CellSums(NamedTuple):
    """For each map, the sum over a cell's lines, and that weighted for the lower mask pixels."""

    lines: Maps
    lower: Maps


class MapWeights(NamedTuple):
    """The coefficients of the maps in the gradient of the logits.

    That of `members` applies to twice the sum over the pixels of the segment.
    """

    focal: Any
    members: Any
    dice: Any


class Sums(NamedTuple):
    """What pixels contribute to the sums of the losses."""

    focal: Any
    one_minus_pt: Any
    """p_t is the probability of the pixel's true label."""
    signed: Any
    """1 − p_t, negative at pixels of the segment."""


class Totals(NamedTuple):
    """`Sums`, and the number of pixels of the segment."""

    focal: Any
    one_minus_pt: Any
    signed: Any
    members: Any


class Targets(NamedTuple):
    """Where a column of cells begins in the targets, and the index of the row's segment."""

    segments_ptr: Any
    cell_x: Any
    first_x: Any
    segment: Any


LN_2 = tl.constexpr(0.6931471805599453)
NOWHERE = tl.constexpr(1e30)
"""The z of a target pixel that does not exist: a certain negative, which contributes nothing."""


@triton.jit
def first_target_pixel(cell, axis):
    """The first target pixel in a cell: ⌈((2 cell + 1) target_size − size) / (2 size)⌉.

    It may be negative, while integer division rounds towards zero; hence the offset.
    """
    offset = axis.phases + 1
    size = plain(axis.size)
    numerator = (2 * cell + 1) * axis.target_size + size - 1 + 2 * size * offset
    return numerator // (2 * size) - offset


@triton.jit
def target_pixel(cell, first, phase, axis, WHOLE: tl.constexpr):
    """Index of a target pixel, the weight of the cell's second mask pixel, and whether it exists.

    If the ratio of the sizes is an integer, the weight depends on the phase alone. In a cell that
    extends beyond the edge, the mask pixel inside has all the weight.
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
    """The index of one of the four target lines of a cell; at the edge, two lines occur twice."""
    line = 4 * cell + 2 + phase
    if phase < 2:
        return tl.where(cell < 0, phase, line)
    return tl.minimum(line, target_size - 4 + phase)


@triton.jit
def weights_of_lines(over):
    """The weights of a cell's second mask pixel at its four lines.

    `over`: the cell extends beyond the edge. Its two lines are visited twice then, and with a
    weight of one half, the mask pixel inside receives the sum over each of them once.
    """
    return (
        tl.where(over, 0.5, 0.125),
        tl.where(over, 0.5, 0.375),
        tl.where(over, 0.5, 0.625),
        tl.where(over, 0.5, 0.875),
    )


@triton.jit
def pairs_of_line(pairs_ptr, cell_y, cell_x, phase: tl.constexpr, inside, resize):
    """The four target pixels of one line of cells as two integers of two pixels, little-endian."""
    y = line_of_cell(cell_y, phase, resize.y.target_size)
    line_ptr = pairs_ptr + y.to(tl.int64) * (resize.x.target_size // 2)
    left = line_of_cell(cell_x, 0, resize.x.target_size) // 2
    right = line_of_cell(cell_x, 2, resize.x.target_size) // 2
    first = tl.load(line_ptr + left, mask=inside, other=0).to(tl.int32)
    return first, tl.load(line_ptr + right, mask=inside, other=0).to(tl.int32)


@triton.jit
def pairs_of_cell(pairs_ptr, cell_y, cell_x, inside, resize):
    """The 4 x 4 target pixels of cells, by line; see `pairs_of_line`."""
    return (
        pairs_of_line(pairs_ptr, cell_y, cell_x, 0, inside, resize),
        pairs_of_line(pairs_ptr, cell_y, cell_x, 1, inside, resize),
        pairs_of_line(pairs_ptr, cell_y, cell_x, 2, inside, resize),
        pairs_of_line(pairs_ptr, cell_y, cell_x, 3, inside, resize),
    )


@triton.jit(do_not_specialize=["max_count", "num_segments"])
def members_kernel(
    pairs_ptr,
    counts_ptr,
    members_ptr,
    max_count,
    num_segments,
    resize,
    LABEL_MAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`members [N, h+1, w+1]`: which of the 4 x 4 target pixels of a cell belong to a segment.

    The low 16 bits have one bit per pixel, the high 16 bits hold how many of them are set.
    `pairs_ptr` points to the targets as integers of two pixels. One program per block of cells and
    image.
    """
    CELLS: tl.constexpr = BLOCK.cells
    height, width = plain(resize.y.size), plain(resize.x.size)
    image = tl.program_id(1)
    count, first = segments_of_image(counts_ptr, image, max_count, num_segments, BLOCK.images)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    cells = (height + 1) * (width + 1)
    inside = cell < cells
    cell_y, cell_x = cell // (width + 1) - 1, cell % (width + 1) - 1
    pairs = tl.full([], resize.y.target_size, tl.int64) * (resize.x.target_size // 2)
    if LABEL_MAP:
        stored = pairs_of_cell(pairs_ptr + image * pairs, cell_y, cell_x, inside, resize)
    for segment in range(count):
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
    """The terms of a pixel in the sums, and in the maps.

    `sign` is −1 in the segment and 1 elsewhere, and `z` is −log₂ e · sign · logit. With
    `VARIANT.maps == 1`, the first map is the gradient itself: the weighted sum of all three.
    """
    positive, negative, gamma = focal.positive_weight, focal.negative_weight, focal.gamma
    one_minus_pt = reciprocal(1.0 + exp2(z))
    pt = 1.0 - one_minus_pt
    log1p = minus_log2_of_rest(tl.minimum(one_minus_pt, pt))
    entropy = tl.maximum(-z, 0.0) + log1p
    factor = (
        one_minus_pt * one_minus_pt
        if VARIANT.square
        else exp2(-gamma * (tl.maximum(z, 0.0) + log1p))
    )
    factor *= 0.5 * (negative + positive) + sign * (0.5 * (negative - positive))
    sums = Sums(factor * entropy, one_minus_pt, sign * one_minus_pt)
    of_focal = sign * (factor * (gamma * LN_2 * (pt * entropy) + one_minus_pt))
    of_dice = one_minus_pt - one_minus_pt * one_minus_pt
    if VARIANT.maps == 1:
        of_focal = (
            map_weights.focal * of_focal
            + (map_weights.dice + map_weights.members * (1.0 - sign)) * of_dice
        )
    return sums, Maps(of_focal, sign * of_dice, of_dice)


@triton.jit
def add_sums(a, b):
    """`a + b`."""
    return Sums(a.focal + b.focal, a.one_minus_pt + b.one_minus_pt, a.signed + b.signed)


@triton.jit
def add_scaled(a, scale, b):
    """`a + scale · b`."""
    return Totals(
        a.focal + scale * b.focal,
        a.one_minus_pt + scale * b.one_minus_pt,
        a.signed + scale * b.signed,
        a.members + scale * b.members,
    )


@triton.jit
def accumulate(line, weight, value):
    return LineSums(line.total + value, line.right + weight * value)


@triton.jit
def add_pixel(line, weight, values):
    """Add a pixel to a line's sums of each map; `weight` is that of the mask pixel at the right."""
    return Maps(
        accumulate(line.focal, weight, values.focal),
        accumulate(line.signed, weight, values.signed),
        accumulate(line.dice, weight, values.dice),
    )


@triton.jit
def add_line_sums(a, b):
    return LineSums(a.total + b.total, a.right + b.right)


@triton.jit
def add_weighted_line_sums(a, weight, b):
    return LineSums(a.total + weight * b.total, a.right + weight * b.right)


@triton.jit
def add_line(cell, weight, line):
    """Add a line to a cell's sums of each map; `weight` is that of the lower mask pixels."""
    lines = Maps(
        add_line_sums(cell.lines.focal, line.focal),
        add_line_sums(cell.lines.signed, line.signed),
        add_line_sums(cell.lines.dice, line.dice),
    )
    lower = Maps(
        add_weighted_line_sums(cell.lower.focal, weight, line.focal),
        add_weighted_line_sums(cell.lower.signed, weight, line.signed),
        add_weighted_line_sums(cell.lower.dice, weight, line.dice),
    )
    return CellSums(lines, lower)


@triton.jit
def zero_line(zero):
    sums = LineSums(zero, zero)
    return Maps(sums, sums, sums)


@triton.jit
def zero_cell(zero):
    return CellSums(zero_line(zero), zero_line(zero))


@triton.jit
def cell_of_four(corners, word, edges, focal, map_weights, VARIANT: tl.constexpr):
    """The sums over the 4 x 4 target pixels of a cell, and those of the maps.

    `corners`: z of its four mask pixels, without the sign. `word`: its bits from `members_kernel`.
    """
    x00, x01, x10, x11 = corners
    over_y, weights_x = edges
    # The compiler may drop an addition of −0, but not of +0: x + (−0) is x even for x = −0.
    zero = tl.full(x00.shape, -0.0, tl.float32)
    x_down, x_step = x10 - x00, x01 - x00
    x_step_down = (x11 - x10) - x_step
    sums = Sums(zero, zero, zero)
    maps = zero_cell(zero)
    for phase_y in range(4):  # not `static_range`, which would take too many registers
        weight_y = tl.where(over_y, 0.5, 0.125 + 0.25 * phase_y)
        line_left = x00 + weight_y * x_down
        line_step = x_step + weight_y * x_step_down
        line = zero_line(zero)
        for phase_x in tl.static_range(4):
            sign = tl.where(((word >> (4 * phase_y)) & (1 << phase_x)) != 0, -1.0, 1.0)
            z = sign * (line_left + weights_x[phase_x] * line_step)
            of_sums, of_maps = pixel(z, sign, focal, map_weights, VARIANT)
            sums = add_sums(sums, of_sums)
            line = add_pixel(line, weights_x[phase_x], of_maps)
        maps = add_line(maps, weight_y, line)
    return Totals(sums.focal, sums.one_minus_pt, sums.signed, (word >> 16).to(tl.float32)), maps


@triton.jit
def cell_of_any(corners, cell_y, targets, resize, focal, map_weights, VARIANT: tl.constexpr):
    """As `cell_of_four`, for any ratio of target size to mask size."""
    x00, x01, x10, x11 = corners
    cell_x, first_x = targets.cell_x, targets.first_x
    first_y = first_target_pixel(cell_y, resize.y)
    zero = tl.zeros(x00.shape, tl.float32)
    sums, members = Sums(zero, zero, zero), zero
    maps = zero_cell(zero)
    for phase_y in range(resize.y.phases):
        y, weight_y, exists_y = target_pixel(cell_y, first_y, phase_y, resize.y, VARIANT.whole)
        line_left = x00 + weight_y * (x10 - x00)
        line_step = x01 + weight_y * (x11 - x01) - line_left
        line_ptr = targets.segments_ptr + y.to(tl.int64) * resize.x.target_size
        line = zero_line(zero)
        for phase_x in range(resize.x.phases):
            x, weight_x, exists = target_pixel(cell_x, first_x, phase_x, resize.x, VARIANT.whole)
            exists = if_also(exists, exists_y)
            stored = tl.load(line_ptr + x, mask=exists, other=-1 if VARIANT.label_map else 0)
            same = stored == targets.segment if VARIANT.label_map else stored != 0
            sign = tl.where(same, -1.0, 1.0)
            z = tl.where(exists, sign * (line_left + weight_x * line_step), NOWHERE)
            of_sums, of_maps = pixel(z, sign, focal, map_weights, VARIANT)
            sums = add_sums(sums, of_sums)
            members += tl.where(same, 1.0, 0.0)
            line = add_pixel(line, weight_x, of_maps)
        maps = add_line(maps, weight_y, line)
    return Totals(sums.focal, sums.one_minus_pt, sums.signed, members), maps
