"""The mask loss at the fine pixels of targets: its sums, and its slopes at mask resolution.

Fine pixels are visited by cell: cell (i, j) is the square between the four mask pixels (i, j),
(i, j+1), (i+1, j) and (i+1, j+1), from which all its fine pixels are interpolated. Cells −1 and
h−1 (w−1) hang over the edge, where interpolation repeats the edge pixel: (h+1)(w+1) cells in all.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from mfkernels.ops.mask_loss.triton_rows import matched_rows
from mfkernels.triton.math import if_also, power_of_sigmoid, segments_of_image, sigmoid_both


@triton.jit
def first_fine(cell, low, high, phases):
    """The first fine pixel in a cell: ⌈((2 cell + 1) high − low) / (2 low)⌉, perhaps negative."""
    above_zero = phases + 1
    numerator = (2 * cell + 1) * high + low - 1 + 2 * low * above_zero
    return numerator // (2 * low) - above_zero


@triton.jit
def fine_pixel(cell, first, phase, low, high, weight_step, weight_start, WHOLE: tl.constexpr):
    """Index of the fine pixel, weight of the cell's second mask pixel, and whether it exists.

    Where the ratio of the sizes is a whole number, the weight depends on the phase alone.
    """
    index = first + phase
    exists = (index >= 0) & (index < high)
    if WHOLE:
        weight = phase * weight_step + weight_start
    else:
        numerator = (2 * index + 1) * low - (2 * cell + 1) * high
        weight = numerator.to(tl.float32) * weight_step
        exists = exists & (numerator < 2 * high)
    return index, weight, exists


@triton.jit
def corner_logits(row, cell_y, left, right, height, width, pixel, inside):
    """Logits at the four corners of cells: upper left, upper right, lower left, lower right."""
    top, bottom = tl.maximum(cell_y, 0), tl.minimum(cell_y + 1, height - 1)
    upper = row + (top * width).to(tl.int64) * pixel
    lower = row + (bottom * width).to(tl.int64) * pixel
    x00 = tl.load(upper + left * pixel, mask=inside, other=0.0)
    x01 = tl.load(upper + right * pixel, mask=inside, other=0.0)
    x10 = tl.load(lower + left * pixel, mask=inside, other=0.0)
    x11 = tl.load(lower + right * pixel, mask=inside, other=0.0)
    return x00.to(tl.float32), x01.to(tl.float32), x10.to(tl.float32), x11.to(tl.float32)


@triton.jit
def focal_parts(logit, target, gamma, SQUARE: tl.constexpr):
    """1 − p_t, p_t, cross-entropy −log p_t and (1 − p_t)^gamma of pixels.

    For a target of 1, the loss is that of the opposite logit for a target of 0.
    """
    away = tl.where(target, -logit, logit)
    miss, hit, log1p = sigmoid_both(away)
    entropy = tl.maximum(away, 0.0) + log1p
    scale = power_of_sigmoid(miss, tl.maximum(-away, 0.0) + log1p, gamma, SQUARE)
    return miss, hit, entropy, scale


@triton.jit
def loss_kernel(
    logits,
    segments,
    assignment,
    counts,
    partial,
    first_image,
    images,
    layers,
    queries,
    max_count,
    height,
    width,
    target_height,
    target_width,
    phases_y,
    phases_x,
    step_y,
    start_y,
    step_x,
    start_x,
    logits_layer,
    logits_image,
    logits_query,
    logits_pixel,
    positive_weight,
    negative_weight,
    gamma,
    FACTORED: tl.constexpr,
    LABEL_MAP: tl.constexpr,
    SQUARE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """`partial [L, B, T, chunks, 4]`: Σ focal, Σ s y, Σ s, Σ y of some cells."""
    local = tl.program_id(2)
    image = first_image + local
    number, first = segments_of_image(counts, image, BLOCK_B)
    row = tl.program_id(1)
    layer, segment, place, query = matched_rows(
        row, number, image, images, layers, queries, max_count, assignment
    )
    if query >= 0:
        if FACTORED:
            # `logits` holds matched rows only: [L, group, T, h·w].
            line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
            logits += line * height * width
        else:
            logits += layer.to(tl.int64) * logits_layer
            logits += image.to(tl.int64) * logits_image + query * logits_query
        if LABEL_MAP:
            segments += image.to(tl.int64) * target_height * target_width
        else:
            segments += (first + segment).to(tl.int64) * target_height * target_width

        cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = cell < (height + 1) * (width + 1)
        cell_y, cell_x = cell // (width + 1) - 1, cell % (width + 1) - 1
        left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
        x00, x01, x10, x11 = corner_logits(
            logits, cell_y, left, right, height, width, logits_pixel, inside
        )
        first_y = first_fine(cell_y, height, target_height, phases_y)
        first_x = first_fine(cell_x, width, target_width, phases_x)

        sum_focal = tl.zeros([BLOCK], tl.float32)
        sum_both = tl.zeros([BLOCK], tl.float32)
        sum_sigmoid = tl.zeros([BLOCK], tl.float32)
        sum_target = tl.zeros([BLOCK], tl.float32)
        for phase_y in range(phases_y):
            y, weight_y, exists_y = fine_pixel(
                cell_y, first_y, phase_y, height, target_height, step_y, start_y, WHOLE
            )
            exists_y = exists_y & inside
            x_left = x00 + weight_y * (x10 - x00)
            x_step = x01 + weight_y * (x11 - x01) - x_left
            line_y = segments + y.to(tl.int64) * target_width
            for phase_x in range(phases_x):
                x, weight_x, exists = fine_pixel(
                    cell_x, first_x, phase_x, width, target_width, step_x, start_x, WHOLE
                )
                exists = exists & exists_y
                logit = x_left + weight_x * x_step
                stored = tl.load(line_y + x, mask=exists, other=-1 if LABEL_MAP else 0)
                target = stored == segment if LABEL_MAP else stored != 0
                miss, hit, entropy, scale = focal_parts(logit, target, gamma, SQUARE)
                weight = tl.where(target, positive_weight, negative_weight)
                sum_focal += tl.where(exists, weight * scale * entropy, 0.0)
                sum_both += tl.where(target, hit, 0.0)
                sum_sigmoid += tl.where(exists, tl.where(target, hit, miss), 0.0)
                sum_target += tl.where(target, 1.0, 0.0)

        line = partial + (place * tl.num_programs(0) + tl.program_id(0)) * 4
        tl.store(line, tl.sum(sum_focal))
        tl.store(line + 1, tl.sum(sum_both))
        tl.store(line + 2, tl.sum(sum_sigmoid))
        tl.store(line + 3, tl.sum(sum_target))


@triton.jit
def totals_kernel(
    partial,
    assignment,
    counts,
    focal,
    dice,
    sums,
    images,
    queries,
    max_count,
    chunks,
    places,
    target_pixels,
    BLOCK: tl.constexpr,
):
    """`focal` and `dice [L, B, T]`, `sums [L, B, T, 3]`; zeros where nothing is matched."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = place < places
    query = tl.load(assignment + place, mask=known, other=-1)
    number = tl.load(counts + (place // max_count) % images, mask=known, other=0)
    matched = (query >= 0) & (query < queries) & (place % max_count < number)
    sum_focal = tl.zeros([BLOCK], tl.float32)
    both = tl.zeros([BLOCK], tl.float32)
    sigmoid = tl.zeros([BLOCK], tl.float32)
    target = tl.zeros([BLOCK], tl.float32)
    for chunk in range(chunks):
        line = partial + (place.to(tl.int64) * chunks + chunk) * 4
        sum_focal += tl.load(line, mask=matched, other=0.0)
        both += tl.load(line + 1, mask=matched, other=0.0)
        sigmoid += tl.load(line + 2, mask=matched, other=0.0)
        target += tl.load(line + 3, mask=matched, other=0.0)
    tl.store(focal + place, sum_focal / target_pixels, mask=known)
    loss = 1.0 - (2.0 * both + 1.0) / (sigmoid + target + 1.0)
    tl.store(dice + place, tl.where(matched, loss, 0.0), mask=known)
    tl.store(sums + place * 3, both, mask=known)
    tl.store(sums + place * 3 + 1, sigmoid, mask=known)
    tl.store(sums + place * 3 + 2, target, mask=known)


@triton.jit
def slopes_kernel(
    logits,
    segments,
    assignment,
    counts,
    sums,
    grad_focal,
    grad_dice,
    slopes,
    first_image,
    images,
    layers,
    queries,
    max_count,
    height,
    width,
    target_height,
    target_width,
    phases_y,
    phases_x,
    step_y,
    start_y,
    step_x,
    start_x,
    logits_layer,
    logits_image,
    logits_query,
    logits_pixel,
    focal_layer,
    focal_image,
    focal_segment,
    dice_layer,
    dice_image,
    dice_segment,
    positive_weight,
    negative_weight,
    gamma,
    FACTORED: tl.constexpr,
    LABEL_MAP: tl.constexpr,
    SQUARE: tl.constexpr,
    WHOLE: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """`slopes [L, group, T, h·w]`: gradient by the logits of matched segments; the rest stays.

    A program walks down MASK_ROWS rows of a stretch of (row, column) pairs. A mask pixel takes part
    in four cells: the share of the cell to its left comes from the neighbouring element, that of
    the cells above from the step before.
    """
    local = tl.program_id(2)
    image = first_image + local
    number, first = segments_of_image(counts, image, BLOCK_B)
    stretch = tl.program_id(0) * (BLOCK - 1)
    if stretch <= layers * number * (width + 1):
        element = tl.arange(0, BLOCK)
        # The first element only serves its right neighbour.
        column = stretch + element - 1
        row = tl.where(column >= 0, column // (width + 1), -1)
        cell_x = column % (width + 1) - 1
        layer, segment, place, query = matched_rows(
            row, number, image, images, layers, queries, max_count, assignment
        )
        matched = query >= 0
        target_pixels = tl.full([], target_height, tl.float32) * target_width
        at = grad_focal + layer * focal_layer + image * focal_image + segment * focal_segment
        by_focal = tl.load(at, mask=matched, other=0.0) / target_pixels
        at = grad_dice + layer * dice_layer + image * dice_image + segment * dice_segment
        by_dice = tl.load(at, mask=matched, other=0.0)
        both = tl.load(sums + place * 3, mask=matched, other=0.0)
        union = tl.load(sums + place * 3 + 1, mask=matched, other=0.0) + 1.0
        union += tl.load(sums + place * 3 + 2, mask=matched, other=0.0)
        by_all = by_dice * (2.0 * both + 1.0) / (union * union)
        by_member = by_all - 2.0 * by_dice / union

        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        line *= tl.full([], height, tl.int64) * width
        slopes_row = slopes + tl.where(matched, line, 0)
        if FACTORED:
            logits_row = logits + tl.where(matched, line, 0)
        else:
            start = layer.to(tl.int64) * logits_layer + image.to(tl.int64) * logits_image
            logits_row = logits + tl.where(matched, start + query * logits_query, 0)
        size = tl.full([], target_height, tl.int64) * target_width
        if LABEL_MAP:
            segments_row = segments + image * size
        else:
            segments_row = segments + tl.where(matched, first + segment, 0) * size
        left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
        first_x = first_fine(cell_x, width, target_width, phases_x)
        before = tl.maximum(element - 1, 0)
        stored = matched & (cell_x >= 0) & (element > 0)

        begin = tl.program_id(1) * MASK_ROWS
        above = tl.zeros([BLOCK], tl.float32)
        for cell_y in range(begin - 1, tl.minimum(begin + MASK_ROWS, height)):
            x00, x01, x10, x11 = corner_logits(
                logits_row, cell_y, left, right, height, width, logits_pixel, matched
            )
            first_y = first_fine(cell_y, height, target_height, phases_y)

            # Over the fine pixels of the cell, the slope by itself and times the weights of the
            # right and of the lower mask pixels.
            total = tl.zeros([BLOCK], tl.float32)
            total_right = tl.zeros([BLOCK], tl.float32)
            lower = tl.zeros([BLOCK], tl.float32)
            lower_right = tl.zeros([BLOCK], tl.float32)
            for phase_y in range(phases_y):
                y, weight_y, exists_y = fine_pixel(
                    cell_y, first_y, phase_y, height, target_height, step_y, start_y, WHOLE
                )
                x_left = x00 + weight_y * (x10 - x00)
                x_step = x01 + weight_y * (x11 - x01) - x_left
                line_y = segments_row + y.to(tl.int64) * target_width
                some = tl.zeros([BLOCK], tl.float32)
                some_right = tl.zeros([BLOCK], tl.float32)
                for phase_x in range(phases_x):
                    x, weight_x, exists = fine_pixel(
                        cell_x, first_x, phase_x, width, target_width, step_x, start_x, WHOLE
                    )
                    exists = if_also(exists & matched, exists_y)
                    logit = x_left + weight_x * x_step
                    value = tl.load(line_y + x, mask=exists, other=-1 if LABEL_MAP else 0)
                    target = value == segment if LABEL_MAP else value != 0
                    miss, hit, entropy, scale = focal_parts(logit, target, gamma, SQUARE)
                    weight = tl.where(target, -positive_weight, negative_weight)
                    slope = by_focal * weight * scale * (gamma * hit * entropy + miss)
                    slope += miss * hit * tl.where(target, by_member, by_all)
                    slope = tl.where(exists, slope, 0.0)
                    some += slope
                    some_right += weight_x * slope
                total += some
                total_right += some_right
                lower += weight_y * some
                lower_right += weight_y * some_right

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
            tl.store(slopes_row + cell_y * width + cell_x, here, mask=written)
