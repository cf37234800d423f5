"""The mask loss at target pixels: its sums over them, and its gradients at mask resolution."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.ops.mask_loss.triton_cells import (
    LN_2,
    Maps,
    MapWeights,
    Targets,
    Totals,
    add_scaled,
    cell_of_any,
    cell_of_four,
    first_target_pixel,
    weights_of_lines,
)
from mfkernels.ops.mask_loss.triton_product_kernels import (
    image_of_program,
    matched_rows,
    packed_index,
    workspace_index,
)
from mfkernels.triton.arguments import SegmentValues
from mfkernels.triton.math import (
    MINUS_LOG2_E,
    dice_loss,
    from_lane_before,
    if_also,
    plain,
    row_offset,
    store_sums,
)


class GradLosses(NamedTuple):
    """The incoming gradients of both losses, `[L, B, T]`, and `sums [L, B, T, 3]`."""

    focal: SegmentValues
    dice: SegmentValues
    sums_ptr: Tensor


class Rows(NamedTuple):
    """For each lane's row: where its logits and its targets begin, and the index of its segment.

    The targets are a label map, a mask, or the bits of `members_kernel`.
    """

    logits_ptr: Any
    pixel_stride: Any
    segments_ptr: Any
    segment: Any


class Columns(NamedTuple):
    """For each lane: its column of cells, and whether it stores the mask pixels at their left."""

    cell_x: Any
    written: Any


class Lines(NamedTuple):
    """The lines of cells of a program: from `begin − 1` up to, but not including, `end`.

    With `overlap`, the previous program also has line `begin − 1`, and counts its sums.
    """

    begin: Any
    end: Any
    overlap: Any


class MapsOfRows(NamedTuple):
    """For each lane's row: where its first map begins, and the stride to the next map."""

    ptr: Any
    map_stride: Any


@triton.jit
def load_segment_value(values, layer, image, segment, exists):
    """Load elements of `values [L, B, T]`; 0 where `exists` is false."""
    value_ptr = (
        values.ptr
        + layer * values.layer_stride
        + image * values.image_stride
        + segment * values.segment_stride
    )
    return tl.load(value_ptr, mask=exists, other=0.0)


@triton.jit
def map_coefficients(grad_losses, layer, image, segment, index, matched, target_pixels):
    """The coefficients of the three maps in the gradient with respect to the logits."""
    of_focal = load_segment_value(grad_losses.focal, layer, image, segment, matched) / target_pixels
    of_dice = load_segment_value(grad_losses.dice, layer, image, segment, matched)
    both = tl.load(grad_losses.sums_ptr + index * 3, mask=matched, other=0.0)
    union = tl.load(grad_losses.sums_ptr + index * 3 + 1, mask=matched, other=0.0) + 1.0
    union += tl.load(grad_losses.sums_ptr + index * 3 + 2, mask=matched, other=0.0)
    # The map of `members` holds twice the sum over the pixels of the segment, hence no factor 2.
    return MapWeights(of_focal, -of_dice / union, of_dice * (2.0 * both + 1.0) / (union * union))


@triton.jit
def split_between_lines(above, sums, lower):
    """Distribute the sums of a line of cells to the lines of mask pixels above and below it.

    `above` is the share of the upper mask pixels from the line of cells before. Returns the
    complete values of the upper mask pixels, and the share of the lower ones.
    """
    upper, upper_right = sums.total - lower.total, sums.right - lower.right
    here = above + (upper - upper_right) + from_lane_before(upper_right)
    return here, (lower.total - lower.right) + from_lane_before(lower.right)


@triton.jit
def store_maps(maps, position, mask, above, cell, VARIANT: tl.constexpr):
    """Store the maps of the mask pixels above a line of cells; return the share of those below.

    The second map is `dice − signed`, twice the sum over the pixels of the segment; it is exactly 0
    where there are none.
    """
    lines, lower = cell.lines, cell.lower
    focal, focal_below = split_between_lines(above.focal, lines.focal, lower.focal)
    tl.store(maps.ptr + position, focal, mask=mask)
    signed_below, dice_below = above.signed, above.dice
    if VARIANT.maps == 3:
        signed, signed_below = split_between_lines(above.signed, lines.signed, lower.signed)
        dice, dice_below = split_between_lines(above.dice, lines.dice, lower.dice)
        tl.store(maps.ptr + maps.map_stride + position, dice - signed, mask=mask)
        tl.store(maps.ptr + 2 * maps.map_stride + position, dice, mask=mask)
    return Maps(focal_below, signed_below, dice_below)


@triton.jit
def logits_of_line(row_ptr, line, left, right, width, pixel_stride):
    """−log₂ e times the logits of the mask pixels at the left and right of a line of cells."""
    line_ptr = row_ptr + (line * width).to(tl.int64) * pixel_stride
    x0 = tl.load(line_ptr + left * pixel_stride).to(tl.float32)
    x1 = tl.load(line_ptr + right * pixel_stride).to(tl.float32)
    return x0 * MINUS_LOG2_E, x1 * MINUS_LOG2_E


@triton.jit
def row_pointers(logits, segments_ptr, matches, image, first, sizes, resize, VARIANT: tl.constexpr):
    """Pointers to the logits and to the targets of rows, and the offset of rows in a workspace.

    For a row without a query, the pointers are valid but arbitrary.
    """
    layer, segment, _, query = matches
    offset = workspace_index(layer, segment, first, sizes)
    offset *= tl.full([], plain(resize.y.size), tl.int64) * plain(resize.x.size)
    logits_offset = offset if VARIANT.factored else row_offset(layer, image, query, logits)
    if VARIANT.four:
        owner = first + segment.to(tl.int64)
        size = tl.full([], plain(resize.y.size) + 1, tl.int64) * (plain(resize.x.size) + 1)
    else:
        owner = image.to(tl.int64) if VARIANT.label_map else first + segment.to(tl.int64)
        size = tl.full([], resize.y.target_size, tl.int64) * resize.x.target_size
    matched = query >= 0
    logits_ptr = logits.ptr + tl.where(matched, logits_offset, 0)
    return logits_ptr, segments_ptr + tl.where(matched, owner, 0) * size, offset


@triton.jit
def walk_down(rows, columns, maps, lines, resize, focal, map_weights, VARIANT: tl.constexpr):
    """Walk down a column of cells: return the sums over its target pixels, and store its maps.

    A mask pixel gets a share of four cells: those of the cells to its left come from the previous
    lane of the warp, those of the cells above from the previous iteration. Also returns the weight
    of the sums: 1/2 in columns beyond the edge, whose pixels are visited twice, otherwise 1.
    """
    logits_ptr, pixel_stride = rows.logits_ptr, rows.pixel_stride
    cell_x, begin = columns.cell_x, lines.begin
    height, width = plain(resize.y.size), plain(resize.x.size)
    left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
    over_x = (cell_x < 0) | (cell_x == width - 1)
    weights_x = weights_of_lines(over_x)
    first_x = first_target_pixel(cell_x, resize.x)
    zero = tl.zeros(cell_x.shape, tl.float32)
    sums, above = Totals(zero, zero, zero, zero), Maps(zero, zero, zero)
    top = tl.maximum(begin - 1, 0)
    x00, x01 = logits_of_line(logits_ptr, top, left, right, width, pixel_stride)
    for cell_y in range(begin - 1, lines.end):
        bottom = tl.minimum(cell_y + 1, height - 1)
        x10, x11 = logits_of_line(logits_ptr, bottom, left, right, width, pixel_stride)
        corners = (x00, x01, x10, x11)
        if VARIANT.four:
            over_y = (cell_y < 0) | (cell_y == height - 1)
            word = tl.load(rows.segments_ptr + (cell_y + 1) * (width + 1) + (cell_x + 1))
            edges = (over_y, weights_x)
            more, of_maps = cell_of_four(corners, word, edges, focal, map_weights, VARIANT)
            part = tl.where(over_y, 0.5, 1.0)
        else:
            targets = Targets(rows.segments_ptr, cell_x, first_x, rows.segment)
            more, of_maps = cell_of_any(
                corners, cell_y, targets, resize, focal, map_weights, VARIANT
            )
            part = 1.0
        x00, x01 = x10, x11
        if VARIANT.sums:
            # If programs overlap, the first line of cells is counted by the program before.
            part = tl.where((cell_y >= begin) | (begin == 0) | (lines.overlap == 0), part, 0.0)
            sums = add_scaled(sums, part, more)
        if VARIANT.maps > 0:
            mask = if_also(columns.written, cell_y >= begin)
            above = store_maps(maps, cell_y * width + cell_x, mask, above, of_maps, VARIANT)
    return sums, tl.where(over_x, 0.5, 1.0) if VARIANT.four else 1.0


@triton.jit
def lines_of_program(axis, OVERLAP: tl.constexpr):
    count = tl.cdiv(plain(axis.size) + 1 - OVERLAP, tl.num_programs(1))
    begin = tl.program_id(1) * count
    return Lines(begin, tl.minimum(begin + count - 1 + OVERLAP, plain(axis.size)), OVERLAP)


@triton.jit
def pixels_kernel(
    logits,
    segments_ptr,
    matching,
    partial_ptr,
    grad_losses,
    maps_ptr,
    sizes,
    resize,
    focal,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums over target pixels, `[L, B, T, chunks, 4, w+1]`, and maps.

    `segments_ptr` is the result of `members_kernel` if targets are four times as large as masks.
    `maps_ptr` is `[3, L, N, h·w]`; with `grad_losses`, it is the gradient `[L, rows, h·w]` with
    respect to the logits.

    Each thread has one column of cells of one row, and walks down a chunk of its lines; the threads
    of a program have consecutive (row, column) pairs.
    """
    CELLS: tl.constexpr = BLOCK.cells
    # For maps, neighbouring cells are needed: the first lane of each warp computes cells only for
    # its neighbour, and so does the first line of cells for the line after it.
    OVERLAP: tl.constexpr = 1 if VARIANT.maps > 0 else 0
    width = plain(resize.x.size)
    image, count, first = image_of_program(matching, sizes, BLOCK.images)
    begin_x = tl.program_id(0) * (CELLS - CELLS // 32 * OVERLAP)
    if begin_x < sizes.layers * count * (width + 1):
        element = tl.arange(0, CELLS)
        column = begin_x + element - (element // 32 + 1) * OVERLAP
        row = tl.where(column >= 0, column // (width + 1), -1)
        # There is nothing to read before the first row: clamp the column of its first lane.
        cell_x = tl.maximum(column, 0) % (width + 1) - 1
        matches = matched_rows(row, count, image, matching, sizes)
        layer, segment, index, query = matches
        counted = (query >= 0) & ((element % 32 > 0) | (OVERLAP == 0))
        logits_ptr, members_ptr, offset = row_pointers(
            logits, segments_ptr, matches, image, first, sizes, resize, VARIANT
        )
        size = tl.full([], plain(resize.y.size), tl.int64) * width
        plane = size * sizes.layers * plain(sizes.num_segments)
        maps, map_weights = None, None
        if VARIANT.maps == 3:
            packed = packed_index(layer, segment, first, sizes)
            maps = MapsOfRows(maps_ptr + packed * size, plane)
        elif VARIANT.maps == 1:
            maps = MapsOfRows(maps_ptr + offset, plane)
            target_pixels = tl.full([], resize.y.target_size, tl.float32) * resize.x.target_size
            map_weights = map_coefficients(
                grad_losses, layer, image, segment, index, query >= 0, target_pixels
            )
        rows = Rows(logits_ptr, logits.pixel_stride, members_ptr, segment)
        columns = Columns(cell_x, counted & (cell_x >= 0))
        lines = lines_of_program(resize.y, OVERLAP)
        sums, share = walk_down(rows, columns, maps, lines, resize, focal, map_weights, VARIANT)
        if VARIANT.sums:
            chunk = index * tl.num_programs(1) + tl.program_id(1)
            sums_ptr = partial_ptr + chunk * (4 * (width + 1)) + cell_x + 1
            for k in tl.static_range(4):
                tl.store(sums_ptr + k * (width + 1), share * sums[k], mask=counted)


@triton.jit(do_not_specialize=["entries", "columns"])
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
    """`focal` and `dice [L, B, T]`, and `sums [L, B, T, 3]`; 0 for a segment without a query.

    Each of the four sums of a row has `entries` = chunks · columns partial sums.
    """
    index = tl.program_id(0)
    segment = index % plain(sizes.max_count)
    image = (index // plain(sizes.max_count)) % sizes.images
    query = tl.load(matching.assignment_ptr + index)
    count = tl.load(matching.counts_ptr + image)
    matched = (query >= 0) & (query < sizes.queries) & (segment < count)
    focal, one_minus_pt, signed, target = 0.0, 0.0, 0.0, 0.0
    if matched:
        zero = tl.zeros([BLOCK], tl.float32)
        s0, s1, s2, s3 = zero, zero, zero, zero
        for start in range(0, entries, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            inside = entry < entries
            offset = (entry // columns) * (4 * columns) + entry % columns
            entry_ptr = partial_ptr + index.to(tl.int64) * 4 * entries + offset
            s0 += tl.load(entry_ptr, mask=inside, other=0.0)
            s1 += tl.load(entry_ptr + columns, mask=inside, other=0.0)
            s2 += tl.load(entry_ptr + 2 * columns, mask=inside, other=0.0)
            s3 += tl.load(entry_ptr + 3 * columns, mask=inside, other=0.0)
        focal, one_minus_pt, signed, target = tl.sum(s0), tl.sum(s1), tl.sum(s2), tl.sum(s3)
    both = target - 0.5 * (one_minus_pt - signed)
    sigmoid = target + signed
    tl.store(focal_ptr + index, focal * LN_2 / target_pixels)
    tl.store(dice_ptr + index, tl.where(matched, dice_loss(both, sigmoid, target), 0.0))
    store_sums(sums_ptr, index, both, sigmoid, target)


@triton.jit
def combine_kernel(
    maps_ptr,
    matching,
    grad_losses,
    grad_logits_ptr,
    sizes,
    target_pixels,
    pixels,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """`grad_logits [L, rows, h·w]` of matched segments: the linear combination of their maps."""
    image, count, first = image_of_program(matching, sizes, IMAGES)
    layer, segment, index, query = matched_rows(tl.program_id(1), count, image, matching, sizes)
    if query >= 0:
        of_focal, of_members, of_all = map_coefficients(
            grad_losses, layer, image, segment, index, True, target_pixels
        )
        plane = tl.full([], sizes.layers, tl.int64) * plain(sizes.num_segments) * pixels
        p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = p < pixels
        map_ptr = maps_ptr + packed_index(layer, segment, first, sizes) * pixels + p
        grad = of_focal * tl.load(map_ptr, mask=inside, other=0.0)
        grad += of_members * tl.load(map_ptr + plane, mask=inside, other=0.0)
        grad += of_all * tl.load(map_ptr + 2 * plane, mask=inside, other=0.0)
        offset = workspace_index(layer, segment, first, sizes) * pixels
        tl.store(grad_logits_ptr + offset + p, grad, mask=inside)
