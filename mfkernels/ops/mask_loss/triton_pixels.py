"""The mask loss at the pixels of targets: its sums, and its gradients at mask resolution.

Target pixels are visited by cell: cell (i, j) is the square between the four mask pixels (i, j),
(i, j+1), (i+1, j) and (i+1, j+1), from which all its target pixels are interpolated. Cells −1 and
h−1 (w−1) hang over the edge, where interpolation repeats the edge pixel: (h+1)(w+1) cells in all.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.mask_loss.triton_rows import matched_rows, workspace_index
from mfkernels.triton.math import (
    if_also,
    power_of_sigmoid,
    row_offset,
    segments_of_image,
    sigmoid_both,
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


class Block(NamedTuple):
    """How many of each a program takes at a time."""

    cells: int
    images: int
    mask_rows: int = 1


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

    Where the ratio of the sizes is a whole number, the weight depends on the phase alone.
    """
    index = first + phase
    exists = (index >= 0) & (index < axis.target_size)
    if WHOLE:
        weight = phase * axis.step + axis.start
    else:
        numerator = (2 * index + 1) * axis.size - (2 * cell + 1) * axis.target_size
        weight = numerator.to(tl.float32) * axis.step
        exists = exists & (numerator < 2 * axis.target_size)
    return index, weight, exists


@triton.jit
def corner_logits(row_ptr, cell_y, left, right, height, width, pixel_stride, inside):
    """Logits at the four corners of cells: upper left, upper right, lower left, lower right."""
    top, bottom = tl.maximum(cell_y, 0), tl.minimum(cell_y + 1, height - 1)
    upper_ptr = row_ptr + (top * width).to(tl.int64) * pixel_stride
    lower_ptr = row_ptr + (bottom * width).to(tl.int64) * pixel_stride
    x00 = tl.load(upper_ptr + left * pixel_stride, mask=inside, other=0.0)
    x01 = tl.load(upper_ptr + right * pixel_stride, mask=inside, other=0.0)
    x10 = tl.load(lower_ptr + left * pixel_stride, mask=inside, other=0.0)
    x11 = tl.load(lower_ptr + right * pixel_stride, mask=inside, other=0.0)
    return x00.to(tl.float32), x01.to(tl.float32), x10.to(tl.float32), x11.to(tl.float32)


@triton.jit
def focal_parts(logit, member, gamma, SQUARE: tl.constexpr):
    """1 − p_t, p_t, cross-entropy −log p_t and (1 − p_t)^gamma of pixels.

    For a target of 1, the loss is that of the opposite logit for a target of 0.
    """
    away = tl.where(member, -logit, logit)
    miss, hit, log1p = sigmoid_both(away)
    entropy = tl.maximum(away, 0.0) + log1p
    scale = power_of_sigmoid(miss, tl.maximum(-away, 0.0) + log1p, gamma, SQUARE)
    return miss, hit, entropy, scale


@triton.jit
def value_of_segment(values, layer, image, segment, exists):
    """Of `values [L, B, T]`; 0 where there is none."""
    value_ptr = values.ptr + layer * values.layer + image * values.image + segment * values.segment
    return tl.load(value_ptr, mask=exists, other=0.0)


@triton.jit
def loss_kernel(
    logits,
    segments_ptr,
    matching,
    partial_ptr,
    sizes,
    resize,
    focal,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`partial [L, B, T, chunks, 4]`: Σ focal, Σ s y, Σ s, Σ y of a chunk of cells."""
    CELLS: tl.constexpr = BLOCK.cells
    height, width = resize.y.size, resize.x.size
    target_height, target_width = resize.y.target_size, resize.x.target_size
    image = sizes.first_image + tl.program_id(2)
    count, first = segments_of_image(matching.counts_ptr, image, BLOCK.images)
    row = tl.program_id(1)
    layer, segment, index, query = matched_rows(row, count, image, matching, sizes)
    if query >= 0:
        if VARIANT.factored:
            # `logits` holds matched rows only: [L, group, T, h·w].
            group_index = workspace_index(layer, segment, sizes)
            logits_ptr = logits.ptr + group_index * height * width
        else:
            logits_ptr = logits.ptr + row_offset(layer, image, query, logits)
        if VARIANT.label_map:
            segments_ptr += image.to(tl.int64) * target_height * target_width
        else:
            segments_ptr += (first + segment).to(tl.int64) * target_height * target_width

        cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
        inside = cell < (height + 1) * (width + 1)
        cell_y, cell_x = cell // (width + 1) - 1, cell % (width + 1) - 1
        left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
        x00, x01, x10, x11 = corner_logits(
            logits_ptr, cell_y, left, right, height, width, logits.pixel, inside
        )
        first_y = first_target_pixel(cell_y, resize.y)
        first_x = first_target_pixel(cell_x, resize.x)

        sum_focal = tl.zeros([CELLS], tl.float32)
        sum_both = tl.zeros([CELLS], tl.float32)
        sum_sigmoid = tl.zeros([CELLS], tl.float32)
        sum_target = tl.zeros([CELLS], tl.float32)
        for phase_y in range(resize.y.phases):
            y, weight_y, exists_y = target_pixel(cell_y, first_y, phase_y, resize.y, VARIANT.whole)
            exists_y = exists_y & inside
            x_left = x00 + weight_y * (x10 - x00)
            x_step = x01 + weight_y * (x11 - x01) - x_left
            line_ptr = segments_ptr + y.to(tl.int64) * target_width
            for phase_x in range(resize.x.phases):
                x, weight_x, exists = target_pixel(
                    cell_x, first_x, phase_x, resize.x, VARIANT.whole
                )
                exists = exists & exists_y
                logit = x_left + weight_x * x_step
                value = tl.load(line_ptr + x, mask=exists, other=-1 if VARIANT.label_map else 0)
                member = value == segment if VARIANT.label_map else value != 0
                miss, hit, entropy, scale = focal_parts(logit, member, focal.gamma, VARIANT.square)
                weight = tl.where(member, focal.positive_weight, focal.negative_weight)
                sum_focal += tl.where(exists, weight * scale * entropy, 0.0)
                sum_both += tl.where(member, hit, 0.0)
                sum_sigmoid += tl.where(exists, tl.where(member, hit, miss), 0.0)
                sum_target += tl.where(member, 1.0, 0.0)

        sums_ptr = partial_ptr + (index * tl.num_programs(0) + tl.program_id(0)) * 4
        tl.store(sums_ptr, tl.sum(sum_focal))
        tl.store(sums_ptr + 1, tl.sum(sum_both))
        tl.store(sums_ptr + 2, tl.sum(sum_sigmoid))
        tl.store(sums_ptr + 3, tl.sum(sum_target))


@triton.jit
def totals_kernel(
    partial_ptr,
    matching,
    focal_ptr,
    dice_ptr,
    sums_ptr,
    sizes,
    chunks,
    rows,
    target_pixels,
    BLOCK: tl.constexpr,
):
    """`focal` and `dice [L, B, T]`, `sums [L, B, T, 3]`; zeros where nothing is matched."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < rows
    query = tl.load(matching.assignment_ptr + index, mask=inside, other=-1)
    image = (index // sizes.max_count) % sizes.images
    count = tl.load(matching.counts_ptr + image, mask=inside, other=0)
    matched = (query >= 0) & (query < sizes.queries) & (index % sizes.max_count < count)
    sum_focal = tl.zeros([BLOCK], tl.float32)
    both = tl.zeros([BLOCK], tl.float32)
    sigmoid = tl.zeros([BLOCK], tl.float32)
    target = tl.zeros([BLOCK], tl.float32)
    for chunk in range(chunks):
        chunk_ptr = partial_ptr + (index.to(tl.int64) * chunks + chunk) * 4
        sum_focal += tl.load(chunk_ptr, mask=matched, other=0.0)
        both += tl.load(chunk_ptr + 1, mask=matched, other=0.0)
        sigmoid += tl.load(chunk_ptr + 2, mask=matched, other=0.0)
        target += tl.load(chunk_ptr + 3, mask=matched, other=0.0)
    tl.store(focal_ptr + index, sum_focal / target_pixels, mask=inside)
    loss = 1.0 - (2.0 * both + 1.0) / (sigmoid + target + 1.0)
    tl.store(dice_ptr + index, tl.where(matched, loss, 0.0), mask=inside)
    tl.store(sums_ptr + index * 3, both, mask=inside)
    tl.store(sums_ptr + index * 3 + 1, sigmoid, mask=inside)
    tl.store(sums_ptr + index * 3 + 2, target, mask=inside)


@triton.jit
def grad_logits_kernel(
    logits,
    segments_ptr,
    matching,
    sums_ptr,
    grad_focal,
    grad_dice,
    grad_logits_ptr,
    sizes,
    resize,
    focal,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`grad_logits [L, group, T, h·w]` of matched segments; the rest stays as it was.

    A program walks down BLOCK.mask_rows rows of a run of (row, column) pairs. A mask pixel takes
    part in four cells: the share of the cell to its left comes from the neighbouring element, that
    of the cells above from the step before.
    """
    CELLS: tl.constexpr = BLOCK.cells
    height, width = resize.y.size, resize.x.size
    target_height, target_width = resize.y.target_size, resize.x.target_size
    image = sizes.first_image + tl.program_id(2)
    count, first = segments_of_image(matching.counts_ptr, image, BLOCK.images)
    begin_x = tl.program_id(0) * (CELLS - 1)
    if begin_x <= sizes.layers * count * (width + 1):
        element = tl.arange(0, CELLS)
        # The first element only serves its right neighbour.
        column = begin_x + element - 1
        row = tl.where(column >= 0, column // (width + 1), -1)
        cell_x = column % (width + 1) - 1
        layer, segment, index, query = matched_rows(row, count, image, matching, sizes)
        matched = query >= 0
        target_pixels = tl.full([], target_height, tl.float32) * target_width
        of_focal = value_of_segment(grad_focal, layer, image, segment, matched) / target_pixels
        of_dice = value_of_segment(grad_dice, layer, image, segment, matched)
        both = tl.load(sums_ptr + index * 3, mask=matched, other=0.0)
        union = tl.load(sums_ptr + index * 3 + 1, mask=matched, other=0.0) + 1.0
        union += tl.load(sums_ptr + index * 3 + 2, mask=matched, other=0.0)
        grad_outside = of_dice * (2.0 * both + 1.0) / (union * union)
        grad_inside = grad_outside - 2.0 * of_dice / union

        offset = workspace_index(layer, segment, sizes)
        offset *= tl.full([], height, tl.int64) * width
        grad_row_ptr = grad_logits_ptr + tl.where(matched, offset, 0)
        if VARIANT.factored:
            logits_row_ptr = logits.ptr + tl.where(matched, offset, 0)
        else:
            offset = row_offset(layer, image, query, logits)
            logits_row_ptr = logits.ptr + tl.where(matched, offset, 0)
        size = tl.full([], target_height, tl.int64) * target_width
        if VARIANT.label_map:
            segments_row_ptr = segments_ptr + image * size
        else:
            segments_row_ptr = segments_ptr + tl.where(matched, first + segment, 0) * size
        left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
        first_x = first_target_pixel(cell_x, resize.x)
        before = tl.maximum(element - 1, 0)
        stored = matched & (cell_x >= 0) & (element > 0)

        begin = tl.program_id(1) * BLOCK.mask_rows
        above = tl.zeros([CELLS], tl.float32)
        for cell_y in range(begin - 1, tl.minimum(begin + BLOCK.mask_rows, height)):
            x00, x01, x10, x11 = corner_logits(
                logits_row_ptr, cell_y, left, right, height, width, logits.pixel, matched
            )
            first_y = first_target_pixel(cell_y, resize.y)

            # Over the target pixels of the cell, the gradient by itself and times the weights of
            # the right and of the lower mask pixels.
            total = tl.zeros([CELLS], tl.float32)
            total_right = tl.zeros([CELLS], tl.float32)
            lower = tl.zeros([CELLS], tl.float32)
            lower_right = tl.zeros([CELLS], tl.float32)
            for phase_y in range(resize.y.phases):
                y, weight_y, exists_y = target_pixel(
                    cell_y, first_y, phase_y, resize.y, VARIANT.whole
                )
                x_left = x00 + weight_y * (x10 - x00)
                x_step = x01 + weight_y * (x11 - x01) - x_left
                line_ptr = segments_row_ptr + y.to(tl.int64) * target_width
                line_total = tl.zeros([CELLS], tl.float32)
                line_right = tl.zeros([CELLS], tl.float32)
                for phase_x in range(resize.x.phases):
                    x, weight_x, exists = target_pixel(
                        cell_x, first_x, phase_x, resize.x, VARIANT.whole
                    )
                    exists = if_also(exists & matched, exists_y)
                    logit = x_left + weight_x * x_step
                    value = tl.load(line_ptr + x, mask=exists, other=-1 if VARIANT.label_map else 0)
                    member = value == segment if VARIANT.label_map else value != 0
                    miss, hit, entropy, scale = focal_parts(
                        logit, member, focal.gamma, VARIANT.square
                    )
                    weight = tl.where(member, -focal.positive_weight, focal.negative_weight)
                    grad_logit = of_focal * weight * scale * (focal.gamma * hit * entropy + miss)
                    grad_logit += miss * hit * tl.where(member, grad_inside, grad_outside)
                    grad_logit = tl.where(exists, grad_logit, 0.0)
                    line_total += grad_logit
                    line_right += weight_x * grad_logit
                total += line_total
                total_right += line_right
                lower += weight_y * line_total
                lower_right += weight_y * line_right

            # Over the edge both mask pixels of an axis are the same one, which is inside.
            lower = tl.where(cell_y < 0, total, tl.where(cell_y == height - 1, 0.0, lower))
            lower_right = tl.where(
                cell_y < 0, total_right, tl.where(cell_y == height - 1, 0.0, lower_right)
            )
            total_right = tl.where(
                cell_x < 0, total, tl.where(cell_x == width - 1, 0.0, total_right)
            )
            lower_right = tl.where(
                cell_x < 0, lower, tl.where(cell_x == width - 1, 0.0, lower_right)
            )
            upper, upper_right = total - lower, total_right - lower_right
            here = above + (upper - upper_right) + tl.gather(upper_right, before, 0)
            above = (lower - lower_right) + tl.gather(lower_right, before, 0)
            written = if_also(stored, cell_y >= begin)
            tl.store(grad_row_ptr + cell_y * width + cell_x, here, mask=written)
