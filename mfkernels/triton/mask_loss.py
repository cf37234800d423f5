"""Focal and dice loss of matched masks at target size, and their gradients.

Forward: logits of the matched rows at mask resolution (one product), sums over the fine pixels of
each row (partial, then joined). Backward: the same logits again, the slope of the losses brought
down to mask resolution, then one product for the gradient of each factor. Nothing of target size is
ever stored, and nothing is added atomically.

Fine pixels are visited by cell: cell (i, j) is the square between the four mask pixels (i, j),
(i, j+1), (i+1, j) and (i+1, j+1), from which all its fine pixels are interpolated. Cells −1 and
h−1 (w−1) hang over the edge, where interpolation repeats the edge pixel: (h+1)(w+1) cells in all.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.device import power_of_sigmoid, segments_of_image, sigmoid_both
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import (
    HALVES,
    check_floats,
    float32_precision,
    focal_weights,
    pixel_stride,
    stored_segments,
    with_flat_pixels,
)

WORKSPACE = 1 << 25
"""Elements of a workspace of logits or slopes (128 MiB); larger batches go in groups of images."""

CELLS_OF_A_PROGRAM = 512
MASK_ROWS_OF_A_PROGRAM = 32
PIXELS_OF_A_PROGRAM = 2048


@triton.jit
def matched_rows(row, number, image, images, layers, queries, max_count, assignment):
    """Layer, segment, place in `[L, B, T]` and query of some rows of an image; query −1 for none.

    The rows of an image are its segments in the first layer, then those in the second, and so on.
    """
    known = (row >= 0) & (row < layers * number)
    number = tl.maximum(number, 1)
    layer, segment = row // number, row % number
    place = (layer.to(tl.int64) * images + image) * max_count + segment
    query = tl.load(assignment + place, mask=known, other=-1)
    return layer, segment, place, tl.where(query < queries, query, -1)


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
def logits_kernel(
    embed,
    features,
    assignment,
    counts,
    logits,
    first_image,
    images,
    layers,
    queries,
    channels,
    pixels,
    max_count,
    embed_layer,
    embed_image,
    embed_query,
    embed_channel,
    features_image,
    features_channel,
    features_pixel,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`logits [L, group, T, h·w]` of matched segments; the rest is not written."""
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R < layers * number:
        layer, segment, _, query = matched_rows(
            row, number, image, images, layers, queries, max_count, assignment
        )
        matched = query >= 0
        start = embed + layer.to(tl.int64) * embed_layer + query * embed_query
        start += image.to(tl.int64) * embed_image
        features += image.to(tl.int64) * features_image
        p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        x = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
        for start_c in range(0, channels, BLOCK_C):
            c = start_c + tl.arange(0, BLOCK_C)
            e = tl.load(
                start[:, None] + c.to(tl.int64)[None, :] * embed_channel,
                mask=matched[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            f = tl.load(
                features
                + c.to(tl.int64)[:, None] * features_channel
                + p.to(tl.int64)[None, :] * features_pixel,
                mask=(c < channels)[:, None] & (p < pixels)[None, :],
                other=0.0,
            )
            if not HALF:
                e = e.to(tl.float32)
                f = f.to(tl.float32)
            x = tl.dot(e, f, x, input_precision=PRECISION)
        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        tl.store(
            logits + line[:, None] * pixels + p[None, :],
            x,
            mask=matched[:, None] & (p < pixels)[None, :],
        )


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
        top, bottom = tl.maximum(cell_y, 0), tl.minimum(cell_y + 1, height - 1)
        left, right = tl.maximum(cell_x, 0), tl.minimum(cell_x + 1, width - 1)
        top_line = logits + (top * width).to(tl.int64) * logits_pixel
        bottom_line = logits + (bottom * width).to(tl.int64) * logits_pixel
        x00 = tl.load(top_line + left * logits_pixel, mask=inside, other=0.0).to(tl.float32)
        x01 = tl.load(top_line + right * logits_pixel, mask=inside, other=0.0).to(tl.float32)
        x10 = tl.load(bottom_line + left * logits_pixel, mask=inside, other=0.0).to(tl.float32)
        x11 = tl.load(bottom_line + right * logits_pixel, mask=inside, other=0.0).to(tl.float32)
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
                # For a target of 1, the loss is that of the opposite logit for a target of 0.
                away = tl.where(target, -logit, logit)
                miss, hit, log1p = sigmoid_both(away)
                entropy = tl.maximum(away, 0.0) + log1p
                scale = power_of_sigmoid(miss, tl.maximum(-away, 0.0) + log1p, gamma, SQUARE)
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
            top, bottom = tl.maximum(cell_y, 0), tl.minimum(cell_y + 1, height - 1)
            top_line = logits_row + (top * width).to(tl.int64) * logits_pixel
            bottom_line = logits_row + (bottom * width).to(tl.int64) * logits_pixel
            x00 = tl.load(top_line + left * logits_pixel, mask=matched, other=0.0)
            x01 = tl.load(top_line + right * logits_pixel, mask=matched, other=0.0)
            x10 = tl.load(bottom_line + left * logits_pixel, mask=matched, other=0.0)
            x11 = tl.load(bottom_line + right * logits_pixel, mask=matched, other=0.0)
            x00, x01 = x00.to(tl.float32), x01.to(tl.float32)
            x10, x11 = x10.to(tl.float32), x11.to(tl.float32)
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
                    exists = exists & exists_y & matched
                    logit = x_left + weight_x * x_step
                    value = tl.load(line_y + x, mask=exists, other=-1 if LABEL_MAP else 0)
                    target = value == segment if LABEL_MAP else value != 0
                    away = tl.where(target, -logit, logit)
                    miss, hit, log1p = sigmoid_both(away)
                    entropy = tl.maximum(away, 0.0) + log1p
                    scale = power_of_sigmoid(miss, tl.maximum(-away, 0.0) + log1p, gamma, SQUARE)
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
            tl.store(slopes_row + cell_y * width + cell_x, here, mask=stored & (cell_y >= begin))


@triton.jit
def embed_kernel(
    slopes,
    features,
    assignment,
    counts,
    partial,
    first_image,
    images,
    layers,
    queries,
    channels,
    pixels,
    max_count,
    features_image,
    features_channel,
    features_pixel,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """`partial [stretches, L, B, T, C]`: slopes · featuresᵀ over PIXELS pixels."""
    channel_tiles = tl.cdiv(channels, BLOCK_C)
    row_tile = tl.program_id(1) // channel_tiles
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    if row_tile * BLOCK_R < layers * number:
        row = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
        layer, segment, place, query = matched_rows(
            row, number, image, images, layers, queries, max_count, assignment
        )
        matched = query >= 0
        c = (tl.program_id(1) % channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
        features += image.to(tl.int64) * features_image
        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        begin = tl.program_id(0) * PIXELS
        for start in range(begin, tl.minimum(begin + PIXELS, pixels), BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            slope = tl.load(
                slopes + line[:, None] * pixels + p[None, :],
                mask=matched[:, None] & (p < pixels)[None, :],
                other=0.0,
            )
            f = tl.load(
                features
                + p.to(tl.int64)[:, None] * features_pixel
                + c.to(tl.int64)[None, :] * features_channel,
                mask=(p < pixels)[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            total = tl.dot(slope, f.to(tl.float32), total, input_precision=PRECISION)
        places = tl.full([], layers, tl.int64) * images * max_count
        at = (tl.program_id(0) * places + place) * channels
        tl.store(
            partial + at[:, None] + c[None, :],
            total,
            mask=matched[:, None] & (c < channels)[None, :],
        )


@triton.jit
def embed_sum_kernel(
    partial,
    assignment,
    counts,
    grad_embed,
    layers,
    queries,
    channels,
    max_count,
    stretches,
    BLOCK_C: tl.constexpr,
):
    """`grad_embed [L, B, Q, C]`: the partial sums of the segments that each query is matched to."""
    layer, query = tl.program_id(0) // queries, tl.program_id(0) % queries
    image = tl.program_id(2)
    images = tl.num_programs(2)
    number = tl.load(counts + image).to(tl.int32)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    places = tl.full([], layers, tl.int64) * images * max_count
    line = layer.to(tl.int64) * images + image
    total = tl.zeros([BLOCK_C], tl.float32)
    for segment in range(number):
        place = line * max_count + segment
        if tl.load(assignment + place) == query:
            for stretch in range(stretches):
                at = (stretch * places + place) * channels
                total += tl.load(partial + at + c, mask=c < channels, other=0.0)
    tl.store(grad_embed + (line * queries + query) * channels + c, total, mask=c < channels)


@triton.jit
def features_kernel(
    slopes,
    embed,
    assignment,
    counts,
    grad_features,
    first_image,
    images,
    layers,
    queries,
    channels,
    pixels,
    max_count,
    embed_layer,
    embed_image,
    embed_query,
    embed_channel,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """`grad_features [B, C, h·w]`: embedᵀ · slopes over the rows of each image."""
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(0, layers * number, BLOCK_R):
        layer, segment, _, query = matched_rows(
            start + tl.arange(0, BLOCK_R),
            number,
            image,
            images,
            layers,
            queries,
            max_count,
            assignment,
        )
        matched = query >= 0
        at = embed + layer.to(tl.int64) * embed_layer + query * embed_query
        at += image.to(tl.int64) * embed_image
        e = tl.load(
            at[None, :] + c.to(tl.int64)[:, None] * embed_channel,
            mask=matched[None, :] & (c < channels)[:, None],
            other=0.0,
        )
        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        slope = tl.load(
            slopes + line[:, None] * pixels + p[None, :],
            mask=matched[:, None] & (p < pixels)[None, :],
            other=0.0,
        )
        total = tl.dot(e.to(tl.float32), slope, total, input_precision=PRECISION)
    at = (image.to(tl.int64) * channels + c) * pixels
    tl.store(
        grad_features + at[:, None] + p[None, :],
        total,
        mask=(c < channels)[:, None] & (p < pixels)[None, :],
    )


@triton.jit
def scatter_kernel(
    slopes,
    assignment,
    counts,
    grad_logits,
    first_image,
    images,
    queries,
    pixels,
    max_count,
    BLOCK: tl.constexpr,
):
    """`grad_logits [L, B, Q, h·w]`: the slopes of the segments that each query is matched to."""
    layer, query = tl.program_id(1) // queries, tl.program_id(1) % queries
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = layer.to(tl.int64) * images + image
    total = tl.zeros([BLOCK], tl.float32)
    for segment in range(number):
        if tl.load(assignment + line * max_count + segment) == query:
            at = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
            total += tl.load(slopes + at * pixels + p, mask=p < pixels, other=0.0)
    tl.store(grad_logits + (line * queries + query) * pixels + p, total, mask=p < pixels)


class _Problem:
    """Sizes, and the arguments that kernels have in common."""

    def __init__(
        self,
        mask_embed: Tensor,
        pixel_features: Tensor | None,
        label_map: Tensor | None,
        masks: Tensor | None,
        counts: Tensor,
        assignment: Tensor,
        alpha: float,
        gamma: float,
    ) -> None:
        check_floats("mask_loss", mask_embed, pixel_features)
        self.factored = pixel_features is not None
        self.embed = mask_embed if self.factored else with_flat_pixels(mask_embed)
        self.features = self.embed if pixel_features is None else with_flat_pixels(pixel_features)
        self.segments = stored_segments(label_map, masks)
        self.counts = counts
        self.assignment = assignment.contiguous()
        self.layers, self.images, self.queries = mask_embed.shape[:3]
        self.max_count = assignment.shape[2]
        self.height, self.width = self.features.shape[-2:]
        self.target_height, self.target_width = self.segments.shape[-2:]
        self.channels = mask_embed.shape[3] if self.factored else 1
        self.pixels = self.height * self.width
        if 4 * (self.height + 1) * self.target_height >= 2**31 or (
            4 * (self.width + 1) * self.target_width >= 2**31
        ):
            raise ValueError(
                "masks and targets are too large for 32-bit positions: "
                f"{self.height}x{self.width} and {self.target_height}x{self.target_width}"
            )
        self.rows = self.layers * self.max_count
        per_image = max(self.rows * self.pixels, 1)
        self.group = max(1, min(self.images, WORKSPACE // per_image))
        positive_weight, negative_weight = focal_weights(alpha)
        self.focal = (positive_weight, negative_weight, float(gamma))
        vertical = _phases(self.height, self.target_height)
        horizontal = _phases(self.width, self.target_width)
        whole = self.target_height % self.height == 0 and self.target_width % self.width == 0
        if whole:
            weights = (*_whole_weights(vertical), *_whole_weights(horizontal))
        else:
            weights = (0.5 / self.target_height, 0.0, 0.5 / self.target_width, 0.0)
        self.sampling: tuple[int | float, ...] = (
            self.max_count,
            self.height,
            self.width,
            self.target_height,
            self.target_width,
            vertical,
            horizontal,
            *weights,
        )
        self.options: dict[str, Any] = {
            "FACTORED": self.factored,
            "LABEL_MAP": label_map is not None,
            "SQUARE": gamma == 2,
            "WHOLE": whole,
            "BLOCK_B": min(power_of_2(self.images), 64),
        }
        self.precision = float32_precision()

    def groups(self) -> list[tuple[int, int]]:
        """First image and number of images of each group."""
        firsts = range(0, self.images, self.group)
        return [(first, min(self.group, self.images - first)) for first in firsts]

    def workspace(self, group: int) -> Tensor:
        shape = (self.layers, group, self.max_count, self.pixels)
        return self.assignment.new_empty(shape, dtype=torch.float32)

    def logits(self, first: int, group: int) -> Tensor:
        """Logits of matched segments of some images; dense ones are there already."""
        if not self.factored:
            return self.embed
        logits = self.workspace(group)
        half = self.embed.dtype == self.features.dtype and self.embed.dtype in HALVES
        launcher.launch(
            logits_kernel,
            (cdiv(self.pixels, 64), cdiv(self.rows, 64), group),
            self.embed,
            self.features,
            self.assignment,
            self.counts,
            logits,
            first,
            *self.row_sizes,
            self.channels,
            self.pixels,
            self.max_count,
            *self.embed.stride(),
            *self.features_strides,
            HALF=half,
            PRECISION=self.precision,
            BLOCK_R=64,
            BLOCK_P=64,
            BLOCK_C=32,
            num_warps=8,
            num_stages=3,
        )
        return logits

    @property
    def row_sizes(self) -> tuple[int, int, int]:
        return self.images, self.layers, self.queries

    @property
    def features_strides(self) -> tuple[int, int, int]:
        return self.features.stride(0), self.features.stride(1), pixel_stride(self.features)

    @property
    def logits_strides(self) -> tuple[int, int, int, int]:
        """Of dense logits by layer, image, query and pixel; a workspace only has the last."""
        if self.factored:
            return 0, 0, 0, 1
        layer, image, query = self.embed.stride()[:3]
        return layer, image, query, pixel_stride(self.embed)


def _phases(low: int, high: int) -> int:
    """The most fine pixels of a cell along an axis."""
    return cdiv(high, low)


def _whole_weights(ratio: int) -> tuple[float, float]:
    """Step and start of the second mask pixel's weight over the phases of a whole ratio."""
    return 1 / ratio, (1 - ratio % 2) / (2 * ratio)


def mask_loss(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `mfkernels::mask_loss`; see csrc/torch_library.cpp for the arguments."""
    problem = _Problem(
        mask_embed, pixel_features, label_map, masks, counts, assignment, alpha, gamma
    )
    shape = assignment.shape
    focal = assignment.new_empty(shape, dtype=torch.float32)
    dice = assignment.new_empty(shape, dtype=torch.float32)
    sums = assignment.new_empty((*shape, 3), dtype=torch.float32)
    if focal.numel() == 0:
        return focal, dice, sums
    chunks = cdiv((problem.height + 1) * (problem.width + 1), CELLS_OF_A_PROGRAM)
    partial = assignment.new_empty((*shape, chunks, 4), dtype=torch.float32)
    for first, group in problem.groups():
        launcher.launch(
            loss_kernel,
            (chunks, problem.rows, group),
            problem.logits(first, group),
            problem.segments,
            problem.assignment,
            counts,
            partial,
            first,
            *problem.row_sizes,
            *problem.sampling,
            *problem.logits_strides,
            *problem.focal,
            **problem.options,
            BLOCK=CELLS_OF_A_PROGRAM,
            num_warps=4,
            maxnreg=128,  # as for the slopes
        )
    launcher.launch(
        totals_kernel,
        (cdiv(focal.numel(), 32),),
        partial,
        problem.assignment,
        counts,
        focal,
        dice,
        sums,
        problem.images,
        problem.queries,
        problem.max_count,
        chunks,
        focal.numel(),
        float(problem.target_height * problem.target_width),
        BLOCK=32,
        num_warps=1,
    )
    return focal, dice, sums


def mask_loss_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
    embed_needed: bool,
    features_needed: bool,
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::mask_loss_backward`; see csrc/torch_library.cpp."""
    problem = _Problem(
        mask_embed, pixel_features, label_map, masks, counts, assignment, alpha, gamma
    )
    features_needed = features_needed and pixel_features is not None
    like = mask_embed if pixel_features is None else pixel_features
    grad_embed = mask_embed.new_empty(mask_embed.shape if embed_needed else (0,))
    grad_features = like.new_empty(like.shape if features_needed else (0,))
    if not (embed_needed or features_needed):
        return grad_embed, grad_features
    if problem.rows == 0:
        return grad_embed.zero_(), grad_features.zero_()
    stretches = cdiv(problem.pixels, PIXELS_OF_A_PROGRAM)
    partial = sums.new_empty(
        (stretches, *assignment.shape, problem.channels)
        if embed_needed and problem.factored
        else (0,)
    )
    for first, group in problem.groups():
        logits = problem.logits(first, group)
        slopes = problem.workspace(group)
        launcher.launch(
            slopes_kernel,
            (
                cdiv(problem.rows * (problem.width + 1), CELLS_OF_A_PROGRAM - 1),
                cdiv(problem.height, MASK_ROWS_OF_A_PROGRAM),
                group,
            ),
            logits,
            problem.segments,
            problem.assignment,
            counts,
            sums,
            grad_focal,
            grad_dice,
            slopes,
            first,
            *problem.row_sizes,
            *problem.sampling,
            *problem.logits_strides,
            *grad_focal.stride(),
            *grad_dice.stride(),
            *problem.focal,
            **problem.options,
            MASK_ROWS=MASK_ROWS_OF_A_PROGRAM,
            BLOCK=CELLS_OF_A_PROGRAM,
            num_warps=8,
            maxnreg=128,  # without it ptxas may spill a little to have another program at a time
        )
        common = (first, *problem.row_sizes, problem.channels, problem.pixels, problem.max_count)
        if not problem.factored:
            launcher.launch(
                scatter_kernel,
                (cdiv(problem.pixels, 1024), problem.layers * problem.queries, group),
                slopes,
                problem.assignment,
                counts,
                grad_embed,
                first,
                problem.images,
                problem.queries,
                problem.pixels,
                problem.max_count,
                BLOCK=1024,
                num_warps=4,
            )
        elif embed_needed:
            launcher.launch(
                embed_kernel,
                (stretches, cdiv(problem.rows, 32) * cdiv(problem.channels, 64), group),
                slopes,
                problem.features,
                problem.assignment,
                counts,
                partial,
                *common,
                *problem.features_strides,
                PRECISION=problem.precision,
                BLOCK_R=32,
                BLOCK_C=64,
                BLOCK_P=32,
                PIXELS=PIXELS_OF_A_PROGRAM,
                num_warps=8,
                num_stages=3,
            )
        if features_needed:
            launcher.launch(
                features_kernel,
                (cdiv(problem.pixels, 64), cdiv(problem.channels, 64), group),
                slopes,
                problem.embed,
                problem.assignment,
                counts,
                grad_features,
                *common,
                *problem.embed.stride(),
                PRECISION=problem.precision,
                BLOCK_R=32,
                BLOCK_C=64,
                BLOCK_P=64,
                num_warps=8,
                num_stages=2,
            )
    if embed_needed and problem.factored:
        launcher.launch(
            embed_sum_kernel,
            (problem.layers * problem.queries, cdiv(problem.channels, 256), problem.images),
            partial,
            problem.assignment,
            counts,
            grad_embed,
            problem.layers,
            problem.queries,
            problem.channels,
            problem.max_count,
            stretches,
            BLOCK_C=256,
            num_warps=4,
        )
    return grad_embed, grad_features
