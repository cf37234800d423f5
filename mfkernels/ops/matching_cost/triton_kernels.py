"""The matching cost in two launches; mask logits live in registers only.

A program of the first kernel takes some rows (a row is a query of a layer) of one image and a
stretch of its pixels. It forms a tile of logits, two maps of it, and multiplies those with the
tile's segments, which are zeros and ones. Stretches leave partial sums; the second kernel adds them
in a fixed order and forms the cost.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.math import power_of_sigmoid, segments_of_image, sigmoid_both, split
from mfkernels.triton.tensors import (
    HALVES,
    check_floats,
    float32_precision,
    focal_weights,
    pixel_stride,
    stored_segments,
    with_flat_pixels,
)

PIXELS_OF_A_PROGRAM = 2048
ROWS_OF_A_PROGRAM = 128


@triton.jit
def sums_kernel(
    embed,
    features,
    segments,
    counts,
    sums,
    areas,
    rows,
    queries,
    channels,
    height,
    width,
    target_height,
    target_width,
    max_count,
    embed_layer,
    embed_image,
    embed_query,
    embed_channel,
    features_image,
    features_channel,
    features_pixel,
    step_y,
    step_x,
    positive_weight,
    negative_weight,
    gamma,
    FACTORED: tl.constexpr,
    HALF: tl.constexpr,
    ALL_CHANNELS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    LABEL_MAP: tl.constexpr,
    SQUARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Partial sums over PIXELS pixels: of f₊−f₋ and s in each segment, of f₋ and s everywhere.

    `sums [stretches, B, rows, 2 T + 2]`, `areas [stretches, B, T]` (pixels of each segment).
    """
    target_tiles = tl.cdiv(max_count, BLOCK_T)
    row_tile = tl.program_id(0)
    stretch = tl.program_id(1) // target_tiles
    target_tile = tl.program_id(1) % target_tiles
    image = tl.program_id(2)
    images = tl.num_programs(2)
    number, first = segments_of_image(counts, image, BLOCK_B)
    t = target_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    pixels = height * width

    row = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    layer, query = row // queries, row % queries
    known = row < rows
    # `embed_channel` is the step from pixel to pixel where embed holds logits.
    row_start = (
        embed
        + layer.to(tl.int64) * embed_layer
        + image.to(tl.int64) * embed_image
        + query.to(tl.int64) * embed_query
    )
    c = tl.arange(0, BLOCK_C)
    features += image.to(tl.int64) * features_image
    if FACTORED and ALL_CHANNELS:
        e = tl.load(
            row_start[:, None] + c.to(tl.int64)[None, :] * embed_channel,
            mask=known[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        if not HALF:
            e = e.to(tl.float32)

    segment_gain = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    segment_sigmoid = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    all_negative = tl.zeros([BLOCK_R], tl.float32)
    all_sigmoid = tl.zeros([BLOCK_R], tl.float32)
    area = tl.zeros([BLOCK_T], tl.float32)
    begin = stretch * PIXELS
    for start in range(begin, min(begin + PIXELS, pixels), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = p < pixels

        if not FACTORED:
            x = tl.load(
                row_start[:, None] + p.to(tl.int64)[None, :] * embed_channel,
                mask=known[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
        elif ALL_CHANNELS:
            f = tl.load(
                features
                + c.to(tl.int64)[:, None] * features_channel
                + p.to(tl.int64)[None, :] * features_pixel,
                mask=(c < channels)[:, None] & inside[None, :],
                other=0.0,
            )
            if not HALF:
                f = f.to(tl.float32)
            x = tl.dot(e, f, input_precision=PRECISION)
        else:
            x = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
            for start_c in range(0, channels, BLOCK_C):
                some = start_c + c
                e = tl.load(
                    row_start[:, None] + some.to(tl.int64)[None, :] * embed_channel,
                    mask=known[:, None] & (some < channels)[None, :],
                    other=0.0,
                )
                f = tl.load(
                    features
                    + some.to(tl.int64)[:, None] * features_channel
                    + p.to(tl.int64)[None, :] * features_pixel,
                    mask=(some < channels)[:, None] & inside[None, :],
                    other=0.0,
                )
                if not HALF:
                    e = e.to(tl.float32)
                    f = f.to(tl.float32)
                x = tl.dot(e, f, x, input_precision=PRECISION)

        # Nearest neighbour in float32, as PyTorch does it.
        target_y = ((p // width).to(tl.float32) * step_y).to(tl.int32)
        target_x = ((p % width).to(tl.float32) * step_x).to(tl.int32)
        target_y = tl.minimum(target_y, target_height - 1).to(tl.int64)
        target_x = tl.minimum(target_x, target_width - 1)
        target_pixel = target_y * target_width + target_x
        if LABEL_MAP:
            size = image.to(tl.int64) * target_height * target_width
            label = tl.load(segments + size + target_pixel, mask=inside, other=-1).to(tl.int32)
            member = label[:, None] == t[None, :]
        else:
            size = tl.full([BLOCK_T], target_height, tl.int64) * target_width
            member = (
                tl.load(
                    segments + target_pixel[:, None] + ((first + t) * size)[None, :],
                    mask=inside[:, None] & (t < number)[None, :],
                    other=0,
                )
                != 0
            )
        member = member.to(tl.float32)
        area += tl.sum(member, 0)

        sigmoid, other, log1p = sigmoid_both(x)
        softplus, softplus_of_minus = tl.maximum(x, 0.0) + log1p, tl.maximum(-x, 0.0) + log1p
        negative = power_of_sigmoid(sigmoid, softplus_of_minus, gamma, SQUARE) * softplus
        negative *= negative_weight
        positive = power_of_sigmoid(other, softplus, gamma, SQUARE) * softplus_of_minus
        gain = positive_weight * positive - negative
        if not WHOLE_TILES:
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

    place = (stretch.to(tl.int64) * images + image) * rows + row
    line = sums + place * (2 * max_count + 2)
    stored = known[:, None] & (t < max_count)[None, :]
    tl.store(line[:, None] + t[None, :], segment_gain, mask=stored)
    tl.store(line[:, None] + max_count + t[None, :], segment_sigmoid, mask=stored)
    if target_tile == 0:
        tl.store(line + 2 * max_count, all_negative, mask=known)
        tl.store(line + 2 * max_count + 1, all_sigmoid, mask=known)
    if row_tile == 0:
        place_of_areas = (stretch.to(tl.int64) * images + image) * max_count
        tl.store(areas + place_of_areas + t, area, mask=t < max_count)


@triton.jit
def cost_kernel(
    class_logits,
    labels,
    counts,
    sums,
    areas,
    cost,
    stretches,
    rows,
    queries,
    classes,
    max_count,
    pixels,
    class_weight,
    mask_weight,
    dice_weight,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """`cost [L, B, Q, T]` from the partial sums and `class_logits [L, B, Q, classes]`."""
    image = tl.program_id(2)
    images = tl.num_programs(2)
    number, first = segments_of_image(counts, image, BLOCK_B)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    known, present = row < rows, t < number
    used = known[:, None] & present[None, :]

    gain = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    sigmoid = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    all_negative = tl.zeros([BLOCK_R], tl.float32)
    all_sigmoid = tl.zeros([BLOCK_R], tl.float32)
    area = tl.zeros([BLOCK_T], tl.float32)
    for stretch in range(stretches):
        place = (image + tl.full([BLOCK_R], images, tl.int64) * stretch) * rows + row
        line = sums + place * (2 * max_count + 2)
        gain += tl.load(line[:, None] + t[None, :], mask=used, other=0.0)
        sigmoid += tl.load(line[:, None] + max_count + t[None, :], mask=used, other=0.0)
        all_negative += tl.load(line + 2 * max_count, mask=known, other=0.0)
        all_sigmoid += tl.load(line + 2 * max_count + 1, mask=known, other=0.0)
        place_of_areas = (image + tl.full([BLOCK_T], images, tl.int64) * stretch) * max_count
        area += tl.load(areas + place_of_areas + t, mask=present, other=0.0)

    # Rows beyond the last one repeat it, and are not stored.
    row = tl.minimum(row, rows - 1)
    layer, query = row // queries, row % queries
    line = (layer.to(tl.int64) * images + image) * queries + query
    # One maximum and one sum for each column of the tile, joined after the loops.
    largest = tl.full([BLOCK_R, BLOCK_K], float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        some = tl.load(
            class_logits + line[:, None] * classes + k[None, :],
            mask=(k < classes)[None, :],
            other=float("-inf"),
        )
        largest = tl.maximum(largest, some.to(tl.float32))
    largest = tl.max(largest, 1)
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        some = tl.load(
            class_logits + line[:, None] * classes + k[None, :],
            mask=(k < classes)[None, :],
            other=float("-inf"),
        )
        total += tl.exp(some.to(tl.float32) - largest[:, None])
    total = tl.sum(total, 1)
    label = tl.load(labels + first + t, mask=present, other=0)
    possible = (label >= 0) & (label < classes - 1)
    chosen = tl.load(
        class_logits + line[:, None] * classes + label[None, :],
        mask=used & possible[None, :],
        other=0.0,
    ).to(tl.float32)
    chance = tl.exp(chosen - largest[:, None]) / total[:, None]
    chance = tl.where(possible[None, :], chance, float("nan"))

    focal = (gain + all_negative[:, None]) / pixels
    dice = 1.0 - (2.0 * sigmoid + 1.0) / (all_sigmoid[:, None] + area[None, :] + 1.0)
    value = mask_weight * focal - class_weight * chance + dice_weight * dice
    tl.store(
        cost + line[:, None] * max_count + t[None, :],
        tl.where(present[None, :], value, 0.0),
        mask=known[:, None] & (t < max_count)[None, :],
    )


def matching_cost(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    max_count: int,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    alpha: float,
    gamma: float,
) -> Tensor:
    """The operator `mfkernels::matching_cost`; see csrc/torch_library.cpp for the arguments."""
    check_floats("matching_cost", class_logits, mask_embed, pixel_features)
    layers, images, queries, classes = class_logits.shape
    cost = class_logits.new_empty((layers, images, queries, max_count), dtype=torch.float32)
    if cost.numel() == 0:
        return cost
    segments = stored_segments(label_map, masks)
    target_height, target_width = segments.shape[-2:]
    factored = pixel_features is not None
    features = with_flat_pixels(mask_embed if pixel_features is None else pixel_features)
    embed = mask_embed if factored else features
    height, width = features.shape[-2:]
    channels = mask_embed.shape[-1] if factored else 1
    half = embed.dtype == features.dtype and embed.dtype in HALVES
    rows, pixels = layers * queries, height * width
    stretches = cdiv(pixels, PIXELS_OF_A_PROGRAM)
    block_t = min(power_of_2(max_count, 16), 64)
    block_b = min(power_of_2(images), 64)
    all_channels = not factored or (half and channels <= 256)
    block_c = power_of_2(channels, 16) if all_channels else 32
    # As many pixels as the registers hold without spilling; tests/test_triton_compilation.py.
    crowded = block_t == 64 or (block_t == 32 and masks is not None and not half)
    block_p = 16 if crowded else 32
    # New memory is never read before it was written: every program stores all of its part.
    sums = cost.new_empty((stretches, images, rows, 2 * max_count + 2))
    areas = cost.new_empty((stretches, images, max_count))
    positive_weight, negative_weight = focal_weights(alpha)
    launcher.launch(
        sums_kernel,
        (cdiv(rows, ROWS_OF_A_PROGRAM), stretches * cdiv(max_count, block_t), images),
        embed,
        features,
        segments,
        counts,
        sums,
        areas,
        rows,
        queries,
        channels,
        height,
        width,
        target_height,
        target_width,
        max_count,
        *embed.stride()[:3],
        embed.stride(3) if factored else pixel_stride(embed),
        features.stride(0),
        features.stride(1),
        pixel_stride(features),
        target_height / height,
        target_width / width,
        positive_weight,
        negative_weight,
        float(gamma),
        FACTORED=factored,
        HALF=half,
        ALL_CHANNELS=all_channels,
        WHOLE_TILES=pixels % block_p == 0,
        LABEL_MAP=label_map is not None,
        SQUARE=gamma == 2,
        PRECISION=float32_precision(),
        BLOCK_R=ROWS_OF_A_PROGRAM,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        BLOCK_T=block_t,
        BLOCK_B=block_b,
        PIXELS=PIXELS_OF_A_PROGRAM,
        num_warps=8,
        num_stages=3,
        maxnreg=255,  # shared memory allows one program at a time anyway
    )
    cost_rows = 16
    launcher.launch(
        cost_kernel,
        (cdiv(rows, cost_rows), cdiv(max_count, block_t), images),
        class_logits.contiguous(),
        labels,
        counts,
        sums,
        areas,
        cost,
        stretches,
        rows,
        queries,
        classes,
        max_count,
        pixels,
        float(class_weight),
        float(mask_weight),
        float(dice_weight),
        BLOCK_R=cost_rows,
        BLOCK_T=block_t,
        BLOCK_K=min(power_of_2(classes), 128),
        BLOCK_B=block_b,
        num_warps=4,
    )
    return cost
