"""The second launch of the matching cost: partial sums become costs.

Outside of a segment the first one leaves differences: what all pixels lose as negatives, less what
those of the segment do. Where that is much, a right pixel with a large logit would swallow the
rest; then a program sums the losses of its rows again, inside and outside of segments apart.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.matching_cost.triton_kernels import (
    add_sums,
    focal_maps,
    load_embed,
    load_segments,
    logits_tile,
    members_of,
)
from mfkernels.triton.math import row_offset, segments_of_image

LARGE = tl.constexpr(8.0)
"""The mean loss of pixels as negatives above which differences are too coarse: the error of a
focal cost is some 2⁻²² of it. Logits of 10 all over the image are needed for that."""


class CostSizes(NamedTuple):
    splits: int
    rows: int
    queries: int
    classes: int
    max_count: int
    pixels: int


class CostWeights(NamedTuple):
    """By which the terms of the cost are multiplied."""

    class_weight: float
    mask_weight: float
    dice_weight: float


class CostBlock(NamedTuple):
    """How many of each a program of the second kernel takes at a time."""

    rows: int
    segments: int
    classes: int
    images: int


@triton.jit
def losses_apart(masks, image, count, first, row, t, VARIANT: tl.constexpr, BLOCK: tl.constexpr):
    """Sums `[rows, segments]` over all pixels: f₊ in a segment, f₋ outside of it."""
    factors, sizes = masks.factors, masks.sizes
    embed, features = factors.embed, factors.features
    pixels = sizes.height * sizes.width
    target_size = sizes.target_height.to(tl.int64) * sizes.target_width
    segments_ptr = masks.segments_ptr + (image if VARIANT.label_map else first) * target_size
    is_row = row < sizes.rows
    row_ptr = embed.ptr + row_offset(row // sizes.queries, image, row % sizes.queries, embed)
    features_ptr = features.ptr + image.to(tl.int64) * features.image
    e = row_ptr
    if VARIANT.factored and VARIANT.all_channels:
        e = load_embed(
            row_ptr, tl.arange(0, BLOCK.channels), embed, is_row, sizes.channels, VARIANT
        )
    scale = tl.full([BLOCK.rows], 1.0, tl.float32)
    if VARIANT.parts > 0:
        row_scale = tl.load(factors.embed_scales_ptr + image * sizes.rows + row, is_row, 0.0)
        scales_ptr = factors.features_scales_ptr + image * tl.cdiv(pixels, BLOCK.pixels)
    index = tl.arange(0, BLOCK.pixels)
    turned_index = (index & -8) + 2 * (index & 3) + ((index >> 2) & 1)
    sums = tl.zeros([BLOCK.rows, BLOCK.segments], tl.float32)
    for start in range(0, pixels, BLOCK.pixels):
        p = start + turned_index
        position = (p // sizes.width, p % sizes.width)
        segments = load_segments(
            position, p < pixels, t, count, segments_ptr, sizes, masks.ratio, VARIANT.label_map
        )
        members = members_of(segments, p < pixels, t, sizes.max_count, VARIANT.label_map)
        if VARIANT.parts > 0:
            scale = tl.minimum(row_scale * tl.load(scales_ptr + start // BLOCK.pixels), 2.0e38)
        logits = logits_tile(
            *(row_ptr, e, features_ptr, start, start + index < pixels, start >= 0),
            *(embed, features, is_row, sizes.channels, VARIANT, BLOCK),
        )
        y = logits * (scale * -1.4426950408889634)[:, None]
        _, positive, negative = focal_maps(y, masks.focal, VARIANT.square)
        sums = add_sums(sums, positive, members)
        sums = add_sums(sums, negative, (p < pixels)[:, None].to(tl.float32) - members)
    return sums * masks.focal.scale


@triton.jit
def cost_kernel(
    masks,
    class_logits_ptr,
    labels_ptr,
    counts_ptr,
    partial,
    cost_ptr,
    sizes,
    weights,
    VARIANT: tl.constexpr,
    MASKS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`cost [L, B, Q, T]` from the partial sums and `class_logits [L, B, Q, classes]`."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_T: tl.constexpr = BLOCK.segments
    BLOCK_K: tl.constexpr = BLOCK.classes
    rows, queries, classes, max_count = sizes.rows, sizes.queries, sizes.classes, sizes.max_count
    image = tl.program_id(2)
    images = tl.num_programs(2)
    count, first = segments_of_image(counts_ptr, image, BLOCK.images)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row, is_segment = row < rows, t < count
    inside = is_row[:, None] & is_segment[None, :]

    gain = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    sigmoid = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    all_negative = tl.zeros([BLOCK_R], tl.float32)
    all_sigmoid = tl.zeros([BLOCK_R], tl.float32)
    area = tl.zeros([BLOCK_T], tl.float32)
    for split_index in range(sizes.splits):
        row_index = (image + tl.full([BLOCK_R], images, tl.int64) * split_index) * rows + row
        sums_ptr = partial.sums_ptr + row_index * (2 * max_count + 2)
        gain += tl.load(sums_ptr[:, None] + t[None, :], mask=inside, other=0.0)
        sigmoid += tl.load(sums_ptr[:, None] + max_count + 1 + t[None, :], mask=inside, other=0.0)
        all_negative += tl.load(sums_ptr + max_count, mask=is_row, other=0.0)
        all_sigmoid += tl.load(sums_ptr + 2 * max_count + 1, mask=is_row, other=0.0)
        image_index = image + tl.full([BLOCK_T], images, tl.int64) * split_index
        area += tl.load(partial.areas_ptr + image_index * max_count + t, mask=is_segment, other=0.0)

    # NaN stays as it is.
    if tl.max(tl.where(all_negative > sizes.pixels * LARGE, 1, 0)) > 0:
        gain = losses_apart(masks, image, count, first, row, t, VARIANT, MASKS_BLOCK)
        all_negative = tl.zeros([BLOCK_R], tl.float32)

    # Rows beyond the last one repeat it, and are not stored.
    row = tl.minimum(row, rows - 1)
    layer, query = row // queries, row % queries
    row_index = (layer.to(tl.int64) * images + image) * queries + query
    # One maximum and one sum for each column of the tile, joined after the loops.
    largest = tl.full([BLOCK_R, BLOCK_K], float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(
            class_logits_ptr + row_index[:, None] * classes + k[None, :],
            mask=(k < classes)[None, :],
            other=float("-inf"),
        )
        largest = tl.maximum(largest, x.to(tl.float32))
    largest = tl.max(largest, 1)
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(
            class_logits_ptr + row_index[:, None] * classes + k[None, :],
            mask=(k < classes)[None, :],
            other=float("-inf"),
        )
        total += tl.exp(x.to(tl.float32) - largest[:, None])
    total = tl.sum(total, 1)
    label = tl.load(labels_ptr + first + t, mask=is_segment, other=0)
    possible = (label >= 0) & (label < classes - 1)
    x = tl.load(
        class_logits_ptr + row_index[:, None] * classes + label[None, :],
        mask=inside & possible[None, :],
        other=0.0,
    )
    probability = tl.exp(x.to(tl.float32) - largest[:, None]) / total[:, None]
    probability = tl.where(possible[None, :], probability, float("nan"))

    focal = (gain + all_negative[:, None]) / sizes.pixels
    dice = 1.0 - (2.0 * sigmoid + 1.0) / (all_sigmoid[:, None] + area[None, :] + 1.0)
    cost = weights.mask_weight * focal - weights.class_weight * probability
    cost += weights.dice_weight * dice
    tl.store(
        cost_ptr + row_index[:, None] * max_count + t[None, :],
        tl.where(is_segment[None, :], cost, 0.0),
        mask=is_row[:, None] & (t < max_count)[None, :],
    )
