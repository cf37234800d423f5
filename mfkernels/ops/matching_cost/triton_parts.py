"""Split float32 factors into sums of float16 tensors, which tensor cores multiply fast.

Each embedding, and each block of pixels of the features, is first scaled by a power of 2 into the
range of float16, where two parts hold 22 bits.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.triton.arguments import unspecialized
from mfkernels.triton.math import halves, load_tile, plain, row_offset, scale_to_half

PIXELS_OF_A_SCALE = tl.constexpr(32)
"""The features of this many pixels share a scale."""
PIXELS_OF_A_RUN = tl.constexpr(16)
"""Runs of this many pixels of the two parts alternate in memory. A tile of the kernels has either
one run or all pixels of one scale."""


class PartsSizes(NamedTuple):
    rows: int
    queries: int
    channels: int
    pixels: int
    blocks: int

    def as_argument(self) -> PartsSizes:
        """Return the argument of the kernel, which decodes `blocks` with `plain`."""
        return self._replace(blocks=unspecialized(self.blocks))


class PartsBlock(NamedTuple):
    """Block sizes, and the precision of the first part."""

    rows: int
    channels: int
    bits: int


@triton.jit
def parts_kernel(
    embed,
    features,
    embed_parts_ptr,
    embed_scales_ptr,
    features_parts_ptr,
    features_scales_ptr,
    sizes,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Split embeddings `[L, B, Q, C]` and features `[B, C, h, w]` into parts with scales.

    Stores `embed_parts [B, rows, PARTS, C]` and `features_parts [B, C, runs, PARTS, pixels of a
    run]`, 0 beyond the last pixel; and `embed_scales [B, rows]` and `features_scales [B, blocks]`,
    with which the parts must be multiplied. A block has `PIXELS_OF_A_SCALE` pixels.
    """
    block, image = tl.program_id(0), tl.program_id(1)
    blocks = plain(sizes.blocks)
    if block < blocks:
        split_features(
            features, features_parts_ptr, features_scales_ptr, block, image, sizes, BLOCK, PARTS
        )
    else:
        block -= blocks
        split_embed(embed, embed_parts_ptr, embed_scales_ptr, block, image, sizes, BLOCK, PARTS)


@triton.jit
def largest_magnitude(row_ptr, column, stride, is_row, is_column, before):
    """The elementwise maximum of `before` and the magnitudes of a tile, as bits of float32.

    As integers, they have the same order as the floating-point numbers, and NaN is the largest.
    """
    x = load_tile(row_ptr, column, stride, is_row, is_column).to(tl.float32)
    return tl.maximum(before, tl.abs(x).to(tl.int32, bitcast=True))


@triton.jit
def split_features(
    features, parts_ptr, scales_ptr, block, image, sizes, BLOCK: tl.constexpr, PARTS: tl.constexpr
):
    BLOCK_C: tl.constexpr = BLOCK.channels
    BLOCK_P: tl.constexpr = PIXELS_OF_A_SCALE
    RUN: tl.constexpr = PIXELS_OF_A_RUN
    index = tl.arange(0, BLOCK_P)
    place = index // RUN * (PARTS * RUN) + index % RUN
    p = block * BLOCK_P + index
    is_pixel = p < sizes.pixels
    features_ptr = features.ptr + image.to(tl.int64) * features.image_stride
    largest = tl.zeros([BLOCK_C, BLOCK_P], tl.int32)
    for start in range(0, sizes.channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        row_ptr = features_ptr + c.to(tl.int64) * features.channel_stride
        is_channel = c < sizes.channels
        largest = largest_magnitude(
            row_ptr, p, features.pixel_stride, is_channel, is_pixel, largest
        )
    scale, unscale = scale_to_half(tl.max(tl.max(largest, 1), 0).to(tl.float32, bitcast=True))
    tl.store(scales_ptr + image * plain(sizes.blocks) + block, unscale)
    for start in range(0, sizes.channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        row_ptr = features_ptr + c.to(tl.int64) * features.channel_stride
        is_channel = c < sizes.channels
        f = load_tile(row_ptr, p, features.pixel_stride, is_channel, is_pixel).to(tl.float32)
        leading, rest = halves(f * scale, BLOCK.bits)
        first = ((image.to(tl.int64) * sizes.channels + c) * plain(sizes.blocks) + block) * PARTS
        part_ptr = parts_ptr + (first * BLOCK_P)[:, None] + place[None, :]
        tl.store(part_ptr, leading, mask=is_channel[:, None])
        if PARTS == 2:
            tl.store(part_ptr + RUN, rest, mask=is_channel[:, None])


@triton.jit
def split_embed(
    embed, parts_ptr, scales_ptr, block, image, sizes, BLOCK: tl.constexpr, PARTS: tl.constexpr
):
    BLOCK_C: tl.constexpr = BLOCK.channels
    BLOCK_R: tl.constexpr = BLOCK.rows
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = row < sizes.rows
    row_ptr = embed.ptr + row_offset(row // sizes.queries, image, row % sizes.queries, embed)
    largest = tl.zeros([BLOCK_R, BLOCK_C], tl.int32)
    for start in range(0, sizes.channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        is_channel = c < sizes.channels
        largest = largest_magnitude(row_ptr, c, embed.channel_stride, is_row, is_channel, largest)
    scale, unscale = scale_to_half(tl.max(largest, 1).to(tl.float32, bitcast=True))
    row_index = image.to(tl.int64) * sizes.rows + row
    tl.store(scales_ptr + row_index, unscale, mask=is_row)
    for start in range(0, sizes.channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        is_channel = c < sizes.channels
        e = load_tile(row_ptr, c, embed.channel_stride, is_row, is_channel).to(tl.float32)
        leading, rest = halves(e * scale[:, None], BLOCK.bits)
        part_ptr = parts_ptr + (row_index * PARTS * sizes.channels)[:, None] + c[None, :]
        stored = is_row[:, None] & is_channel[None, :]
        tl.store(part_ptr, leading, mask=stored)
        if PARTS == 2:
            tl.store(part_ptr + sizes.channels, rest, mask=stored)
