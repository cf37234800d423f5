"""The matching cost in two launches; mask logits live in registers only.

A program of the first kernel takes some rows (a row is a query of a layer) of one image and one of
the splits of its pixels. It forms a tile of logits, two maps of it, and multiplies those with the
tile's segments, which are zeros and ones. Splits leave partial sums; the second kernel adds them
in a fixed order and forms the cost.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton.arguments import (
    Product,
)
from mfkernels.triton.math import (
    load_tile,
    power_of_sigmoid,
    row_offset,
    segments_of_image,
    sigmoid_both,
    split,
)


class PartialSums(NamedTuple):
    """What the first kernel leaves for the second one."""

    sums_ptr: Tensor
    """`[splits, B, rows, 2 T + 2]`: f₊−f₋ and s in each segment, f₋ and s everywhere."""
    areas_ptr: Tensor
    """`[splits, B, T]`: pixels of each segment."""


class Sizes(NamedTuple):
    """Rows are the queries of all layers."""

    rows: int
    queries: int
    channels: int
    height: int
    width: int
    target_height: int
    target_width: int
    max_count: int


class Ratio(NamedTuple):
    """Pixels of the target per pixel of the mask."""

    vertical: float
    horizontal: float


class Variant(NamedTuple):
    """What the first kernel is compiled for."""

    factored: bool
    all_channels: bool
    """One block holds all channels."""
    whole_tiles: bool
    """The pixels are a multiple of a block's."""
    label_map: bool
    square: bool
    product: Product


class Block(NamedTuple):
    """How many of each a program of the first kernel takes at a time."""

    rows: int
    pixels: int
    channels: int
    segments: int
    images: int
    pixels_of_split: int


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
def sums_kernel(
    embed,
    features,
    segments_ptr,
    counts_ptr,
    partial,
    sizes,
    ratio,
    focal,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The partial sums of one split of the pixels."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_T: tl.constexpr = BLOCK.segments
    BLOCK_P: tl.constexpr = BLOCK.pixels
    channels, max_count = sizes.channels, sizes.max_count
    target_tiles = tl.cdiv(max_count, BLOCK_T)
    row_tile = tl.program_id(0)
    split_index = tl.program_id(1) // target_tiles
    target_tile = tl.program_id(1) % target_tiles
    image = tl.program_id(2)
    images = tl.num_programs(2)
    count, first = segments_of_image(counts_ptr, image, BLOCK.images)
    t = target_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    pixels = sizes.height * sizes.width

    row = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    layer, query = row // sizes.queries, row % sizes.queries
    is_row = row < sizes.rows
    row_ptr = embed.ptr + row_offset(layer, image, query, embed)
    c = tl.arange(0, BLOCK.channels)
    features_ptr = features.ptr + image.to(tl.int64) * features.image
    if VARIANT.factored and VARIANT.all_channels:
        e = load_tile(row_ptr, c, embed.channel, is_row, c < channels)
        if not VARIANT.product.half:
            e = e.to(tl.float32)

    segment_gain = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    segment_sigmoid = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    all_negative = tl.zeros([BLOCK_R], tl.float32)
    all_sigmoid = tl.zeros([BLOCK_R], tl.float32)
    area = tl.zeros([BLOCK_T], tl.float32)
    begin = split_index * BLOCK.pixels_of_split
    for start in range(begin, min(begin + BLOCK.pixels_of_split, pixels), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = p < pixels

        if not VARIANT.factored:
            x = load_tile(row_ptr, p, embed.pixel, is_row, inside).to(tl.float32)
        elif VARIANT.all_channels:
            channel_ptr = features_ptr + c.to(tl.int64) * features.channel
            f = load_tile(channel_ptr, p, features.pixel, c < channels, inside)
            if not VARIANT.product.half:
                f = f.to(tl.float32)
            x = tl.dot(e, f, input_precision=VARIANT.product.precision)
        else:
            x = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
            for start_c in range(0, channels, BLOCK.channels):
                channel = start_c + c
                e = load_tile(row_ptr, channel, embed.channel, is_row, channel < channels)
                channel_ptr = features_ptr + channel.to(tl.int64) * features.channel
                f = load_tile(channel_ptr, p, features.pixel, channel < channels, inside)
                if not VARIANT.product.half:
                    e = e.to(tl.float32)
                    f = f.to(tl.float32)
                x = tl.dot(e, f, x, input_precision=VARIANT.product.precision)

        # Nearest neighbour in float32, as PyTorch does it.
        target_y = ((p // sizes.width).to(tl.float32) * ratio.vertical).to(tl.int32)
        target_x = ((p % sizes.width).to(tl.float32) * ratio.horizontal).to(tl.int32)
        target_y = tl.minimum(target_y, sizes.target_height - 1).to(tl.int64)
        target_x = tl.minimum(target_x, sizes.target_width - 1)
        target_pixel = target_y * sizes.target_width + target_x
        if VARIANT.label_map:
            offset = image.to(tl.int64) * sizes.target_height * sizes.target_width
            label = tl.load(segments_ptr + offset + target_pixel, mask=inside, other=-1)
            member = label.to(tl.int32)[:, None] == t[None, :]
        else:
            size = tl.full([BLOCK_T], sizes.target_height, tl.int64) * sizes.target_width
            value = tl.load(
                segments_ptr + target_pixel[:, None] + ((first + t) * size)[None, :],
                mask=inside[:, None] & (t < count)[None, :],
                other=0,
            )
            member = value != 0
        member = member.to(tl.float32)
        area += tl.sum(member, 0)

        sigmoid, other, log1p = sigmoid_both(x)
        softplus, softplus_of_minus = tl.maximum(x, 0.0) + log1p, tl.maximum(-x, 0.0) + log1p
        negative = power_of_sigmoid(sigmoid, softplus_of_minus, focal.gamma, VARIANT.square)
        negative = negative * softplus * focal.negative_weight
        positive = power_of_sigmoid(other, softplus, focal.gamma, VARIANT.square)
        gain = focal.positive_weight * (positive * softplus_of_minus) - negative
        if not VARIANT.whole_tiles:
            negative = tl.where(inside[None, :], negative, 0.0)
            sigmoid = tl.where(inside[None, :], sigmoid, 0.0)
        all_negative += tl.sum(negative, 1)
        all_sigmoid += tl.sum(sigmoid, 1)
        # Zeros and ones are exact in bfloat16, and so is the sum of three parts.
        members = member.to(tl.bfloat16)
        leading, middle, trailing = split(gain)
        segment_gain = tl.dot(leading, members, segment_gain)
        segment_gain = tl.dot(middle, members, segment_gain)
        segment_gain = tl.dot(trailing, members, segment_gain)
        leading, middle, trailing = split(sigmoid)
        segment_sigmoid = tl.dot(leading, members, segment_sigmoid)
        segment_sigmoid = tl.dot(middle, members, segment_sigmoid)
        segment_sigmoid = tl.dot(trailing, members, segment_sigmoid)

    row_index = (split_index.to(tl.int64) * images + image) * sizes.rows + row
    sums_ptr = partial.sums_ptr + row_index * (2 * max_count + 2)
    stored = is_row[:, None] & (t < max_count)[None, :]
    tl.store(sums_ptr[:, None] + t[None, :], segment_gain, mask=stored)
    tl.store(sums_ptr[:, None] + max_count + t[None, :], segment_sigmoid, mask=stored)
    if target_tile == 0:
        tl.store(sums_ptr + 2 * max_count, all_negative, mask=is_row)
        tl.store(sums_ptr + 2 * max_count + 1, all_sigmoid, mask=is_row)
    if row_tile == 0:
        areas_offset = (split_index.to(tl.int64) * images + image) * max_count
        tl.store(partial.areas_ptr + areas_offset + t, area, mask=t < max_count)


@triton.jit
def cost_kernel(
    class_logits_ptr,
    labels_ptr,
    counts_ptr,
    partial,
    cost_ptr,
    sizes,
    weights,
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
        sigmoid += tl.load(sums_ptr[:, None] + max_count + t[None, :], mask=inside, other=0.0)
        all_negative += tl.load(sums_ptr + 2 * max_count, mask=is_row, other=0.0)
        all_sigmoid += tl.load(sums_ptr + 2 * max_count + 1, mask=is_row, other=0.0)
        image_index = image + tl.full([BLOCK_T], images, tl.int64) * split_index
        area += tl.load(partial.areas_ptr + image_index * max_count + t, mask=is_segment, other=0.0)

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
