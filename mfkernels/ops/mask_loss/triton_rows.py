"""Products of the mask loss: matched rows of embeddings, or their gradients, and the features."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton.math import load_tile, row_offset


class Matching(NamedTuple):
    """The segments of each image, and the query that each is matched to."""

    assignment_ptr: Tensor
    """`[L, B, T]`, −1 for none."""
    counts_ptr: Tensor
    """`[B]`."""


class Sizes(NamedTuple):
    """The group of images begins with `first_image`; its workspaces are `[L, group, T, h·w]`."""

    first_image: int
    images: int
    layers: int
    queries: int
    max_count: int


class ProductSizes(NamedTuple):
    """`Sizes`, and those of embeddings and masks."""

    first_image: int
    images: int
    layers: int
    queries: int
    channels: int
    pixels: int
    max_count: int


class ProductBlock(NamedTuple):
    """How many of each a program takes at a time."""

    rows: int
    channels: int
    pixels: int
    pixels_of_split: int = 0


@triton.jit
def matched_rows(row, count, image, matching, sizes):
    """Layer, segment, index in `[L, B, T]` and query of rows of an image; query −1 for none.

    The rows of an image are its segments in the first layer, then those in the second, and so on.
    """
    inside = (row >= 0) & (row < sizes.layers * count)
    count = tl.maximum(count, 1)
    layer, segment = row // count, row % count
    index = (layer.to(tl.int64) * sizes.images + image) * sizes.max_count + segment
    query = tl.load(matching.assignment_ptr + index, mask=inside, other=-1)
    return layer, segment, index, tl.where(query < sizes.queries, query, -1)


@triton.jit
def image_of_program(matching, sizes):
    """The image of this program, whose third index is that in the group, and its segments."""
    image = sizes.first_image + tl.program_id(2)
    return image, tl.load(matching.counts_ptr + image).to(tl.int32)


@triton.jit
def workspace_index(layer, segment, sizes):
    """Index in `[L, group, T]` of segments of the image of this program."""
    index = layer.to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    return index * sizes.max_count + segment


@triton.jit
def logits_kernel(
    embed, features, matching, logits_ptr, sizes, PRODUCT: tl.constexpr, BLOCK: tl.constexpr
):
    """`logits [L, group, T, h·w]` of matched segments; the rest is not written."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_P: tl.constexpr = BLOCK.pixels
    channels, pixels = sizes.channels, sizes.pixels
    image, count = image_of_program(matching, sizes)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R < sizes.layers * count:
        layer, segment, _, query = matched_rows(row, count, image, matching, sizes)
        matched = query >= 0
        row_ptr = embed.ptr + row_offset(layer, image, query, embed)
        features_ptr = features.ptr + image.to(tl.int64) * features.image
        p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        x = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
        for start in range(0, channels, BLOCK.channels):
            c = start + tl.arange(0, BLOCK.channels)
            e = load_tile(row_ptr, c, embed.channel, matched, c < channels)
            channel_ptr = features_ptr + c.to(tl.int64) * features.channel
            f = load_tile(channel_ptr, p, features.pixel, c < channels, p < pixels)
            if not PRODUCT.half:
                e = e.to(tl.float32)
                f = f.to(tl.float32)
            x = tl.dot(e, f, x, input_precision=PRODUCT.precision)
        group_index = workspace_index(layer, segment, sizes)
        tl.store(
            logits_ptr + group_index[:, None] * pixels + p[None, :],
            x,
            mask=matched[:, None] & (p < pixels)[None, :],
        )


@triton.jit
def grad_embed_kernel(
    grad_ptr, features, matching, partial_ptr, sizes, PRECISION: tl.constexpr, BLOCK: tl.constexpr
):
    """`partial [splits, L, B, T, C]`: grad_logits · featuresᵀ over one split of the pixels."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_C: tl.constexpr = BLOCK.channels
    channels, pixels = sizes.channels, sizes.pixels
    channel_tiles = tl.cdiv(channels, BLOCK_C)
    row_tile = tl.program_id(1) // channel_tiles
    image, count = image_of_program(matching, sizes)
    if row_tile * BLOCK_R < sizes.layers * count:
        row = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
        layer, segment, index, query = matched_rows(row, count, image, matching, sizes)
        matched = query >= 0
        c = (tl.program_id(1) % channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
        features_ptr = features.ptr + image.to(tl.int64) * features.image
        group_index = workspace_index(layer, segment, sizes)
        row_ptr = grad_ptr + group_index * pixels
        total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        begin = tl.program_id(0) * BLOCK.pixels_of_split
        end = tl.minimum(begin + BLOCK.pixels_of_split, pixels)
        for start in range(begin, end, BLOCK.pixels):
            p = start + tl.arange(0, BLOCK.pixels)
            grad = load_tile(row_ptr, p, 1, matched, p < pixels)
            pixel_ptr = features_ptr + p.to(tl.int64) * features.pixel
            f = load_tile(pixel_ptr, c, features.channel, p < pixels, c < channels)
            total = tl.dot(grad, f.to(tl.float32), total, input_precision=PRECISION)
        rows_of_split = tl.full([], sizes.layers, tl.int64) * sizes.images * sizes.max_count
        offset = (tl.program_id(0) * rows_of_split + index) * channels
        tl.store(
            partial_ptr + offset[:, None] + c[None, :],
            total,
            mask=matched[:, None] & (c < channels)[None, :],
        )


@triton.jit
def grad_embed_sum_kernel(
    partial_ptr, matching, grad_embed_ptr, sizes, splits, BLOCK_C: tl.constexpr
):
    """`grad_embed [L, B, Q, C]`: the partial sums of the segments that each query is matched to."""
    queries, channels = sizes.queries, sizes.channels
    layer, query = tl.program_id(0) // queries, tl.program_id(0) % queries
    image = tl.program_id(2)
    images = tl.num_programs(2)
    count = tl.load(matching.counts_ptr + image).to(tl.int32)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows_of_split = tl.full([], sizes.layers, tl.int64) * images * sizes.max_count
    layer_image = layer.to(tl.int64) * images + image
    total = tl.zeros([BLOCK_C], tl.float32)
    for segment in range(count):
        index = layer_image * sizes.max_count + segment
        if tl.load(matching.assignment_ptr + index) == query:
            for split in range(splits):
                offset = (split * rows_of_split + index) * channels
                total += tl.load(partial_ptr + offset + c, mask=c < channels, other=0.0)
    offset = (layer_image * queries + query) * channels
    tl.store(grad_embed_ptr + offset + c, total, mask=c < channels)


@triton.jit
def grad_features_kernel(
    grad_ptr,
    embed,
    matching,
    grad_features_ptr,
    sizes,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`grad_features [B, C, h·w]`: embedᵀ · grad_logits over the rows of each image."""
    BLOCK_C: tl.constexpr = BLOCK.channels
    BLOCK_P: tl.constexpr = BLOCK.pixels
    channels, pixels = sizes.channels, sizes.pixels
    image, count = image_of_program(matching, sizes)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(0, sizes.layers * count, BLOCK.rows):
        row = start + tl.arange(0, BLOCK.rows)
        layer, segment, _, query = matched_rows(row, count, image, matching, sizes)
        matched = query >= 0
        row_ptr = embed.ptr + row_offset(layer, image, query, embed)
        e = tl.load(
            row_ptr[None, :] + c.to(tl.int64)[:, None] * embed.channel,
            mask=matched[None, :] & (c < channels)[:, None],
            other=0.0,
        )
        group_index = workspace_index(layer, segment, sizes)
        grad = load_tile(grad_ptr + group_index * pixels, p, 1, matched, p < pixels)
        total = tl.dot(e.to(tl.float32), grad, total, input_precision=PRECISION)
    offset = (image.to(tl.int64) * channels + c) * pixels
    tl.store(
        grad_features_ptr + offset[:, None] + p[None, :],
        total,
        mask=(c < channels)[:, None] & (p < pixels)[None, :],
    )


@triton.jit
def scatter_kernel(grad_matched_ptr, matching, grad_logits_ptr, sizes, BLOCK: tl.constexpr):
    """`grad_logits [L, B, Q, h·w]`: the sum over the segments that each query is matched to."""
    queries, pixels, max_count = sizes.queries, sizes.pixels, sizes.max_count
    layer, query = tl.program_id(1) // queries, tl.program_id(1) % queries
    image, count = image_of_program(matching, sizes)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer_image = layer.to(tl.int64) * sizes.images + image
    total = tl.zeros([BLOCK], tl.float32)
    for segment in range(count):
        if tl.load(matching.assignment_ptr + layer_image * max_count + segment) == query:
            group_index = workspace_index(layer, segment, sizes)
            total += tl.load(
                grad_matched_ptr + group_index * pixels + p, mask=p < pixels, other=0.0
            )
    offset = (layer_image * queries + query) * pixels
    tl.store(grad_logits_ptr + offset + p, total, mask=p < pixels)
