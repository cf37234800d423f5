"""The mask loss at the pixels of targets: its sums, and its gradients at mask resolution.

Target pixels are visited by cell: cell (i, j) is the square between the four mask pixels (i, j),
(i, j+1), (i+1, j) and (i+1, j+1), from which all its target pixels are interpolated. Cells −1 and
h−1 (w−1) hang over the edge, where interpolation repeats the edge pixel: (h+1)(w+1) cells in all.

Where targets are four times as large as masks, a cell holds 4 x 4 target pixels. Of a cell over the
edge two of four lines are missing; the other two, along which the logit is constant, are visited
twice and count half. So no pixel needs a mask.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.ops.mask_loss.triton_rows import matched_rows, workspace_index
from mfkernels.triton.arguments import SegmentValues
from mfkernels.triton.math import (
    exp2,
    from_lane_before,
    if_also,
    minus_log2_of_rest,
    reciprocal,
    row_offset,
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


class Slopes(NamedTuple):
    """Gradients `[L, B, T]` of the losses and `sums [L, B, T, 3]`."""

    focal: SegmentValues
    dice: SegmentValues
    sums_ptr: Tensor


MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NOWHERE = tl.constexpr(1e30)
"""`−log₂ e` times the logit of a pixel that does not exist: it is no one's, and adds nothing."""


@triton.jit
def first_target_pixel(cell, axis):
    """The first target pixel in a cell: ⌈((2 cell + 1) target_size − size) / (2 size)⌉.

    It may be negative.
    """
    above_zero = axis.phases + 1
    size = axis.size
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
        numerator = (2 * index + 1) * axis.size - (2 * cell + 1) * axis.target_size
        weight = numerator.to(tl.float32) * axis.step
        exists = exists & (numerator < 2 * axis.target_size)
    weight = tl.where(cell < 0, 1.0, tl.where(cell == axis.size - 1, 0.0, weight))
    return index, weight, exists


@triton.jit
def value_of_segment(values, layer, image, segment, exists):
    """Of `values [L, B, T]`; 0 where there is none."""
    value_ptr = values.ptr + layer * values.layer + image * values.image + segment * values.segment
    return tl.load(value_ptr, mask=exists, other=0.0)


@triton.jit
def coefficients(slopes, layer, image, segment, index, matched, target_pixels):
    """Of the maps of the focal loss, of members and of all pixels in the gradient of logits."""
    of_focal = value_of_segment(slopes.focal, layer, image, segment, matched) / target_pixels
    of_dice = value_of_segment(slopes.dice, layer, image, segment, matched)
    both = tl.load(slopes.sums_ptr + index * 3, mask=matched, other=0.0)
    union = tl.load(slopes.sums_ptr + index * 3 + 1, mask=matched, other=0.0) + 1.0
    union += tl.load(slopes.sums_ptr + index * 3 + 2, mask=matched, other=0.0)
    # `members` is twice the sum over them.
    return of_focal, -of_dice / union, of_dice * (2.0 * both + 1.0) / (union * union)


@triton.jit
def pixel(z, sign, focal, slopes, VARIANT: tl.constexpr):
    """Σ terms of a pixel, and those of the maps.

    `z`: −log₂ e times the logit, times `sign`, −1 in the segment and 1 elsewhere.
    """
    positive, negative, gamma = focal
    miss = reciprocal(1.0 + exp2(z))
    hit = 1.0 - miss
    log1p = minus_log2_of_rest(tl.minimum(miss, hit))
    entropy = tl.maximum(-z, 0.0) + log1p
    if VARIANT.square:
        scale = miss * miss
    else:
        scale = exp2(-gamma * (tl.maximum(z, 0.0) + log1p))
    weight = 0.5 * (negative + positive) + sign * (0.5 * (negative - positive))
    scale *= weight
    sums = (scale * entropy, miss, sign * miss)
    of_focal = sign * (scale * (gamma * LN_2 * (hit * entropy) + miss))
    of_dice = miss - miss * miss
    if VARIANT.maps == 1:
        of_focal = slopes[0] * of_focal + (slopes[2] + slopes[1] * (1.0 - sign)) * of_dice
    return sums, (of_focal, sign * of_dice, of_dice)


@triton.jit
def plus(a, b):
    """The sums of two tuples of three."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def plus_pixel(line, weight, values):
    """For each map, the sum of a line of target pixels, and that with the weights of the right."""
    return (
        line[0] + values[0],
        line[1] + weight * values[0],
        line[2] + values[1],
        line[3] + weight * values[1],
        line[4] + values[2],
        line[5] + weight * values[2],
    )


@triton.jit
def plus_line(cell, weight, line):
    """The sums of lines, and those with the weights of the lower mask pixels."""
    return (
        cell[0] + line[0],
        cell[1] + line[1],
        cell[2] + line[2],
        cell[3] + line[3],
        cell[4] + line[4],
        cell[5] + line[5],
        cell[6] + weight * line[0],
        cell[7] + weight * line[1],
        cell[8] + weight * line[2],
        cell[9] + weight * line[3],
        cell[10] + weight * line[4],
        cell[11] + weight * line[5],
    )


@triton.jit
def line_of_cell(cell, phase: tl.constexpr, target_size):
    """The line of 4 x 4 target pixels of a cell; of a cell over the edge, two lines twice."""
    line = 4 * cell + 2 + phase
    if phase < 2:
        return tl.where(cell < 0, phase, line)
    return tl.minimum(line, target_size - 4 + phase)


@triton.jit
def weights_of_cell(over):
    """The weights of a cell's second mask pixel at four lines: halves over the edge."""
    return (
        tl.where(over, 0.5, 0.125),
        tl.where(over, 0.5, 0.375),
        tl.where(over, 0.5, 0.625),
        tl.where(over, 0.5, 0.875),
    )


@triton.jit
def pairs_of_cell(pairs_ptr, cell_y, cell_x, inside, resize):
    """The 4 x 4 target pixels of cells, two in each of eight integers, little end first."""
    stored = ()
    for phase_y in tl.static_range(4):
        y = line_of_cell(cell_y, phase_y, resize.y.target_size)
        line_ptr = pairs_ptr + y.to(tl.int64) * (resize.x.target_size // 2)
        for pair in tl.static_range(2):
            x = line_of_cell(cell_x, 2 * pair, resize.x.target_size)
            stored = stored + (tl.load(line_ptr + x // 2, mask=inside, other=0).to(tl.int32),)
    return stored


@triton.jit
def members_kernel(
    pairs_ptr, counts_ptr, members_ptr, max_count, resize, LABEL_MAP: tl.constexpr, BLOCK: tl.constexpr
):
    """`members [B, T, h+1, w+1]`: which of the 4 x 4 target pixels of a cell are of a segment.

    One bit a pixel, and above them how many there are. `pairs_ptr`: two pixels an integer.
    """
    CELLS: tl.constexpr = BLOCK.cells
    height, width = resize.y.size, resize.x.size
    image = tl.program_id(1)
    count, first = segments_of_image(counts_ptr, image, BLOCK.images)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    cells = (height + 1) * (width + 1)
    inside = cell < cells
    cell_y, cell_x = cell // (width + 1) - 1, cell % (width + 1) - 1
    pairs = tl.full([], resize.y.target_size, tl.int64) * (resize.x.target_size // 2)
    if LABEL_MAP:
        stored = pairs_of_cell(pairs_ptr + image * pairs, cell_y, cell_x, inside, resize)
    for segment in range(tl.minimum(count, max_count)):
        if not LABEL_MAP:
            owner_ptr = pairs_ptr + (first + segment) * pairs
            stored = pairs_of_cell(owner_ptr, cell_y, cell_x, inside, resize)
        word = tl.zeros([CELLS], tl.int32)
        for pair in tl.static_range(8):
            two = stored[pair]
            if LABEL_MAP:
                two = two ^ (segment | (segment << 16))
                low, high = (two & 0xFFFF) == 0, (two & -65536) == 0
            else:
                low, high = (two & 0x00FF) != 0, (two & 0xFF00) != 0
            word += tl.where(low, 65536 + (1 << (2 * pair)), 0)
            word += tl.where(high, 65536 + (2 << (2 * pair)), 0)
        index = image.to(tl.int64) * max_count + segment
        tl.store(members_ptr + index * cells + cell, word, mask=inside)


@triton.jit
def cell_of_four(corners, word, weights_y, weights_x, focal, slopes, VARIANT: tl.constexpr):
    """The sums of the 4 x 4 target pixels of a cell, and for the maps, those by corner."""
    x00, x01, x10, x11 = corners
    zero = tl.full(x00.shape, -0.0, tl.float32)  # x + (−0) is x, for the compiler too
    x_down, x_step = x10 - x00, x01 - x00
    x_step_down = (x11 - x10) - x_step
    sums = (zero, zero, zero)
    maps = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for phase_y in tl.static_range(4):
        line_left = x00 + weights_y[phase_y] * x_down
        line_step = x_step + weights_y[phase_y] * x_step_down
        line = (zero, zero, zero, zero, zero, zero)
        for phase_x in tl.static_range(4):
            sign = tl.where((word & (1 << (4 * phase_y + phase_x))) != 0, -1.0, 1.0)
            z = sign * (line_left + weights_x[phase_x] * line_step)
            of_sums, of_maps = pixel(z, sign, focal, slopes, VARIANT)
            sums = plus(sums, of_sums)
            line = plus_pixel(line, weights_x[phase_x], of_maps)
        maps = plus_line(maps, weights_y[phase_y], line)
    return (sums[0], sums[1], sums[2], (word >> 16).to(tl.float32)), maps


@triton.jit
def cell_of_any(corners, cell_y, place, resize, focal, slopes, VARIANT: tl.constexpr):
    """The sums of the target pixels of a cell, and for the maps, those by corner."""
    x00, x01, x10, x11 = corners
    line_ptr, cell_x, first_x, segment = place
    first_y = first_target_pixel(cell_y, resize.y)
    zero = tl.zeros(x00.shape, tl.float32)
    sums, members = (zero, zero, zero), zero
    maps = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for phase_y in range(resize.y.phases):
        y, weight_y, exists_y = target_pixel(cell_y, first_y, phase_y, resize.y, VARIANT.whole)
        line_left = x00 + weight_y * (x10 - x00)
        line_step = x01 + weight_y * (x11 - x01) - line_left
        pixel_ptr = line_ptr + y.to(tl.int64) * resize.x.target_size
        line = (zero, zero, zero, zero, zero, zero)
        for phase_x in range(resize.x.phases):
            x, weight_x, exists = target_pixel(cell_x, first_x, phase_x, resize.x, VARIANT.whole)
            exists = if_also(exists, exists_y)
            stored = tl.load(pixel_ptr + x, mask=exists, other=-1 if VARIANT.label_map else 0)
            same = stored == segment if VARIANT.label_map else stored != 0
            sign = tl.where(same, -1.0, 1.0)
            z = tl.where(exists, sign * (line_left + weight_x * line_step), NOWHERE)
            of_sums, of_maps = pixel(z, sign, focal, slopes, VARIANT)
            sums = plus(sums, of_sums)
            members += tl.where(same, 1.0, 0.0)
            line = plus_pixel(line, weight_x, of_maps)
        maps = plus_line(maps, weight_y, line)
    return (sums[0], sums[1], sums[2], members), maps


@triton.jit
def handed_down(above, maps, FIRST: tl.constexpr):
    """What mask pixels get from this cell row and the one before, and the share of those below."""
    total, right = maps[FIRST], maps[FIRST + 1]
    lower, lower_right = maps[FIRST + 6], maps[FIRST + 7]
    upper, upper_right = total - lower, right - lower_right
    here = above + (upper - upper_right) + from_lane_before(upper_right)
    return here, (lower - lower_right) + from_lane_before(lower_right)


@triton.jit
def corner_logits(row_ptr, line, left, right, width, pixel_stride, matched):
    """−log₂ e times the logits of a line of mask pixels, left and right of cells."""
    line_ptr = row_ptr + (line * width).to(tl.int64) * pixel_stride
    x0 = tl.load(line_ptr + left * pixel_stride, mask=matched, other=0.0).to(tl.float32)
    x1 = tl.load(line_ptr + right * pixel_stride, mask=matched, other=0.0).to(tl.float32)
    return x0 * MINUS_LOG2_E, x1 * MINUS_LOG2_E


@triton.jit
def pixels_kernel(
    logits,
    segments_ptr,
    matching,
    partial_ptr,
    slopes,
    maps_ptr,
    sizes,
    resize,
    focal,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over target pixels `[L, B, T, chunks, 4, w+1]`, and maps.

    A program walks down rows of a run of (row, column) pairs. A mask pixel takes part in four
    cells: the share of the cell to its left comes from the lane before, that of the cells above from
    the step before.
    """
    CELLS: tl.constexpr = BLOCK.cells
    height, width = resize.y.size, resize.x.size
    image = sizes.first_image + tl.program_id(2)
    count, first = segments_of_image(matching.counts_ptr, image, BLOCK.images)
    # For maps, the first lane of a warp only serves its neighbour.
    OVERLAP: tl.constexpr = 1 if VARIANT.maps > 0 else 0
    element = tl.arange(0, CELLS)
    begin_x = tl.program_id(0) * (CELLS - CELLS // 32 * OVERLAP)
    if begin_x < sizes.layers * count * (width + 1):
        column = begin_x + element - (element // 32 + 1) * OVERLAP
        row = tl.where(column >= 0, column // (width + 1), -1)
        cell_x = column % (width + 1) - 1
        layer, segment, index, query = matched_rows(row, count, image, matching, sizes)
        matched = query >= 0
        counted = matched & ((element % 32 > 0) | (OVERLAP == 0))
        slope = (0.0, 0.0, 0.0)
        if VARIANT.maps == 1:
            target_pixels = tl.full([], resize.y.target_size, tl.float32) * resize.x.target_size
            slope = coefficients(slopes, layer, image, segment, index, matched, target_pixels)
        offset = workspace_index(layer, segment, sizes) * height * width
        if VARIANT.maps == 3:
            map_ptr = maps_ptr + index * height * width
        elif VARIANT.maps == 1:
            map_ptr = maps_ptr + offset
        if not VARIANT.factored:
            offset = row_offset(layer, image, query, logits)
        logits_row_ptr = logits.ptr + tl.where(matched, offset, 0)
        left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
        if VARIANT.four:
            over = (cell_x < 0) | (cell_x == width - 1)
            weights_x = weights_of_cell(over)
            share = tl.where(over, 0.5, 1.0)
            owner = image.to(tl.int64) * sizes.max_count + segment
            segment_ptr = segments_ptr + tl.where(matched, owner, 0) * (height + 1) * (width + 1)
            segment_ptr += cell_x + 1
        else:
            share = tl.full([CELLS], 1.0, tl.float32)
            owner = image.to(tl.int64) if VARIANT.label_map else first + segment.to(tl.int64)
            size = tl.full([], resize.y.target_size, tl.int64) * resize.x.target_size
            segment_ptr = segments_ptr + tl.where(matched, owner, 0) * size
            first_x = first_target_pixel(cell_x, resize.x)

        rows = tl.cdiv(height + 1 - OVERLAP, tl.num_programs(1))
        begin = tl.program_id(1) * rows
        end = tl.minimum(begin + rows - 1 + OVERLAP, height)
        zero = tl.zeros([CELLS], tl.float32)
        above = (zero, zero, zero)
        sums = (zero, zero, zero, zero)
        x00, x01 = corner_logits(
            logits_row_ptr, tl.maximum(begin - 1, 0), left, right, width, logits.pixel, matched
        )
        for cell_y in range(begin - 1, end):
            x10, x11 = corner_logits(
                logits_row_ptr,
                tl.minimum(cell_y + 1, height - 1),
                left,
                right,
                width,
                logits.pixel,
                matched,
            )
            corners = (x00, x01, x10, x11)
            if VARIANT.four:
                over_y = (cell_y < 0) | (cell_y == height - 1)
                part = tl.where(over_y, 0.5, 1.0)
                word = tl.load(segment_ptr + (cell_y + 1) * (width + 1))
                weights_y = weights_of_cell(over_y)
                more, maps = cell_of_four(
                    corners, word, weights_y, weights_x, focal, slope, VARIANT
                )
            else:
                part = 1.0
                place = (segment_ptr, cell_x, first_x, segment)
                more, maps = cell_of_any(corners, cell_y, place, resize, focal, slope, VARIANT)
            x00, x01 = x10, x11
            if OVERLAP == 1:
                part = tl.where((cell_y < begin) & (begin > 0), 0.0, part)
            if VARIANT.sums:
                sums = (
                    sums[0] + part * more[0],
                    sums[1] + part * more[1],
                    sums[2] + part * more[2],
                    sums[3] + part * more[3],
                )
            if VARIANT.maps > 0:
                written = if_also(counted & (cell_x >= 0), cell_y >= begin)
                here_ptr = map_ptr + cell_y * width + cell_x
                of_focal, above0 = handed_down(above[0], maps, 0)
                tl.store(here_ptr, of_focal, mask=written)
                above1, above2 = above[1], above[2]
                if VARIANT.maps == 3:
                    plane = (sizes.layers * sizes.images * sizes.max_count).to(tl.int64) * height * width
                    of_signed, above1 = handed_down(above[1], maps, 2)
                    of_all, above2 = handed_down(above[2], maps, 4)
                    tl.store(here_ptr + plane, of_all - of_signed, mask=written)
                    tl.store(here_ptr + 2 * plane, of_all, mask=written)
                above = (above0, above1, above2)

        if VARIANT.sums:
            chunk = index * tl.num_programs(1) + tl.program_id(1)
            sums_ptr = partial_ptr + chunk * (4 * (width + 1)) + cell_x + 1
            tl.store(sums_ptr, share * sums[0], mask=counted)
            tl.store(sums_ptr + (width + 1), share * sums[1], mask=counted)
            tl.store(sums_ptr + 2 * (width + 1), share * sums[2], mask=counted)
            tl.store(sums_ptr + 3 * (width + 1), share * sums[3], mask=counted)


@triton.jit
def totals_kernel(
    partial_ptr,
    matching,
    focal_ptr,
    dice_ptr,
    sums_ptr,
    sizes,
    entries,
    columns,
    target_pixels,
    BLOCK: tl.constexpr,
):
    """`focal` and `dice [L, B, T]`, `sums [L, B, T, 3]`; zeros where nothing is matched.

    `entries`: of each sum of a row in `partial`, `columns` at a time.
    """
    index = tl.program_id(0)
    segment = index % sizes.max_count
    image = (index // sizes.max_count) % sizes.images
    query = tl.load(matching.assignment_ptr + index)
    count = tl.load(matching.counts_ptr + image)
    matched = (query >= 0) & (query < sizes.queries) & (segment < count)
    focal, miss, signed, target = 0.0, 0.0, 0.0, 0.0
    if matched:
        zero = tl.zeros([BLOCK], tl.float32)
        s0, s1, s2, s3 = zero, zero, zero, zero
        for start in range(0, entries, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            inside = entry < entries
            place = (entry // columns) * (4 * columns) + entry % columns
            entry_ptr = partial_ptr + index.to(tl.int64) * 4 * entries + place
            s0 += tl.load(entry_ptr, mask=inside, other=0.0)
            s1 += tl.load(entry_ptr + columns, mask=inside, other=0.0)
            s2 += tl.load(entry_ptr + 2 * columns, mask=inside, other=0.0)
            s3 += tl.load(entry_ptr + 3 * columns, mask=inside, other=0.0)
        focal, miss, signed, target = tl.sum(s0), tl.sum(s1), tl.sum(s2), tl.sum(s3)
    both = target - 0.5 * (miss - signed)
    sigmoid = target + signed
    tl.store(focal_ptr + index, focal * LN_2 / target_pixels)
    loss = 1.0 - (2.0 * both + 1.0) / (sigmoid + target + 1.0)
    tl.store(dice_ptr + index, tl.where(matched, loss, 0.0))
    tl.store(sums_ptr + index * 3, both)
    tl.store(sums_ptr + index * 3 + 1, sigmoid)
    tl.store(sums_ptr + index * 3 + 2, target)


@triton.jit
def combine_kernel(
    maps_ptr, matching, slopes, grad_logits_ptr, sizes, target_pixels, pixels, BLOCK: tl.constexpr
):
    """`grad_logits [L, group, T, h·w]` of matched segments from their three maps."""
    image = sizes.first_image + tl.program_id(2)
    count = tl.load(matching.counts_ptr + image).to(tl.int32)
    layer, segment, index, query = matched_rows(tl.program_id(1), count, image, matching, sizes)
    if query >= 0:
        of_focal, of_members, of_all = coefficients(
            slopes, layer, image, segment, index, True, target_pixels
        )
        plane = (sizes.layers * sizes.images * sizes.max_count).to(tl.int64) * pixels
        p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = p < pixels
        map_ptr = maps_ptr + index * pixels + p
        grad = of_focal * tl.load(map_ptr, mask=inside, other=0.0)
        grad += of_members * tl.load(map_ptr + plane, mask=inside, other=0.0)
        grad += of_all * tl.load(map_ptr + 2 * plane, mask=inside, other=0.0)
        offset = workspace_index(layer, segment, sizes) * pixels
        tl.store(grad_logits_ptr + offset + p, grad, mask=inside)
