"""Features in float32 as the sum of two float16 tensors, for the tensor cores."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from mfkernels.triton.math import halves, load_tile, row_offset, scale_to_half


@triton.jit
def features_parts_kernel(
    features,
    parts_ptr,
    scales_ptr,
    channels,
    pixels,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PARTS: tl.constexpr,
):
    """`parts [B, C, blocks, parts, pixels]` and `scales [B, blocks]` of features `[B, C, h, w]`."""
    block, image = tl.program_id(0), tl.program_id(1)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    is_pixel = p < pixels
    features_ptr = features.ptr + image.to(tl.int64) * features.image
    largest = tl.zeros([BLOCK_C, BLOCK_P], tl.int32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        row_ptr = features_ptr + c.to(tl.int64) * features.channel
        f = load_tile(row_ptr, p, features.pixel, c < channels, is_pixel).to(tl.float32)
        # As integers, magnitudes keep their order, and NaN is the largest.
        largest = tl.maximum(largest, tl.abs(f).to(tl.int32, bitcast=True))
    scale, unscale = scale_to_half(tl.max(tl.max(largest, 1), 0).to(tl.float32, bitcast=True))
    blocks = tl.num_programs(0)
    tl.store(scales_ptr + image * blocks + block, unscale)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        row_ptr = features_ptr + c.to(tl.int64) * features.channel
        f = load_tile(row_ptr, p, features.pixel, c < channels, is_pixel).to(tl.float32)
        leading, rest = halves(f * scale)
        index = ((image.to(tl.int64) * channels + c) * blocks + block) * PARTS * BLOCK_P
        target_ptr = parts_ptr + index[:, None] + tl.arange(0, BLOCK_P)[None, :]
        tl.store(target_ptr, leading, mask=(c < channels)[:, None])
        if PARTS == 2:
            tl.store(target_ptr + BLOCK_P, rest, mask=(c < channels)[:, None])


@triton.jit
def embed_parts_kernel(
    embed,
    parts_ptr,
    scales_ptr,
    rows,
    queries,
    channels,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PARTS: tl.constexpr,
):
    """`parts [B, rows, parts, C]` and `scales [B, rows]` of embeddings `[L, B, Q, C]`."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = row < rows
    row_ptr = embed.ptr + row_offset(row // queries, image, row % queries, embed)
    largest = tl.zeros([BLOCK_R, BLOCK_C], tl.int32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        e = load_tile(row_ptr, c, embed.channel, is_row, c < channels).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(e).to(tl.int32, bitcast=True))
    scale, unscale = scale_to_half(tl.max(largest, 1).to(tl.float32, bitcast=True))
    row_index = image.to(tl.int64) * rows + row
    tl.store(scales_ptr + row_index, unscale, mask=is_row)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        e = load_tile(row_ptr, c, embed.channel, is_row, c < channels).to(tl.float32)
        leading, rest = halves(e * scale[:, None])
        target_ptr = parts_ptr + (row_index * PARTS * channels)[:, None] + c[None, :]
        stored = is_row[:, None] & (c < channels)[None, :]
        tl.store(target_ptr, leading, mask=stored)
        if PARTS == 2:
            tl.store(target_ptr + channels, rest, mask=stored)
