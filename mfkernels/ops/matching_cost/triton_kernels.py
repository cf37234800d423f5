"""The matching cost in two launches, of which this is the first; logits live in registers only.

A program takes some rows (a row is a query of a layer) of one image and one of
the splits of its pixels. It forms a tile of logits, two maps of it, and multiplies those with the
tile's segments, which are zeros and ones. Splits leave partial sums; the second kernel, of
`triton_cost`, adds them in a fixed order and forms the cost.

What passes between a product and the next one stays in the registers where it is: the maps are
factors in TF32, in two parts each, and their columns are only named anew (`turned`).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.ops.matching_cost.triton_parts import PIXELS_OF_A_RUN, PIXELS_OF_A_SCALE
from mfkernels.triton.arguments import Features, FocalParameters, Predictions, unspecialized
from mfkernels.triton.math import (
    MINUS_LOG2_E,
    alternate_runs,
    exp2,
    if_also,
    load_tile,
    log2,
    plain,
    reciprocal_of_pairs,
    row_offset,
    segments_of_image,
    tf32_parts,
)


class PartialSums(NamedTuple):
    """What this kernel leaves for the second one."""

    sums_ptr: Tensor
    """`[splits, B, rows, 2 T + 2]`: f₊−f₋ in each segment, f₋ everywhere, then s likewise."""
    areas_ptr: Tensor
    """`[splits, B, T]`: pixels of each segment."""


class Factors(NamedTuple):
    """Embeddings and features, or dense logits as `embed`."""

    embed: Predictions
    features: Features
    embed_scales_ptr: Tensor | int = 1
    """`[B, rows]` and `[B, blocks]`: what factors in parts are to be multiplied by."""
    features_scales_ptr: Tensor | int = 1


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

    def as_argument(self) -> Sizes:
        """As kernels take it: `plain` gives them the sizes of the mask and `max_count`."""
        return self._replace(
            height=unspecialized(self.height),
            width=unspecialized(self.width),
            max_count=unspecialized(self.max_count),
        )


class Ratio(NamedTuple):
    """Pixels of the target per pixel of the mask."""

    vertical: float
    horizontal: float


class Focal(NamedTuple):
    """`scale` · (`positive`² · f₊ − `negative` · f₋), in logarithms to base 2; and the exponent."""

    scale: float
    positive: float
    negative: float
    """The integer 1, a constant of the kernel, where this is the larger weight."""
    gamma: float

    @classmethod
    def of(cls, alpha: float, gamma: float) -> Focal:
        positive, negative, gamma = FocalParameters.of(alpha, gamma)
        larger = max(positive, negative)
        return cls(
            scale=larger * math.log(2),
            positive=math.sqrt(positive / larger),
            negative=1 if negative == larger else negative / larger,
            gamma=gamma,
        )


class Masks(NamedTuple):
    """Predicted masks, the segments and what the focal loss of one and the other needs."""

    factors: Factors
    segments_ptr: Tensor
    sizes: Sizes
    ratio: Ratio
    focal: Focal

    def as_argument(self) -> Masks:
        """As kernels take them."""
        return self._replace(sizes=self.sizes.as_argument())


class Variant(NamedTuple):
    """What the first kernel is compiled for, and the second one's reading of masks."""

    factored: bool
    all_channels: bool
    """One block holds all channels."""
    whole_tiles: bool
    """The pixels are a multiple of a block's."""
    label_map: bool
    square: bool
    parts: int
    """How many float16 tensors each factor is the sum of, see `triton_parts`; 0: as it came."""


class Block(NamedTuple):
    """How many of each a program of the first kernel takes at a time."""

    rows: int
    pixels: int
    channels: int
    segments: int
    images: int
    pixels_of_split: int
    stages: int


@triton.jit
def load_embed(row_ptr, c, embed, is_row, channels, VARIANT: tl.constexpr):
    """Tiles of both parts of the embeddings; twice the same if they are in one part."""
    e = load_tile(row_ptr, c, embed.channel_stride, is_row, c < channels)
    if VARIANT.parts == 2:
        rest = load_tile(row_ptr + channels, c, embed.channel_stride, is_row, c < channels)
    else:
        rest = e
    return e, rest


@triton.jit
def add_product(x, e, features_ptr, c, channels, column, inside, features, VARIANT: tl.constexpr):
    """`x` plus the product of embeddings and features of some channels."""
    channel_ptr = features_ptr + c.to(tl.int64) * features.channel_stride
    f = load_tile(channel_ptr, column, features.pixel_stride, c < channels, inside)
    x = tl.dot(e[0], f, x)
    if VARIANT.parts == 2:
        x = tl.dot(e[1], f, x)
    return x


@triton.jit
def logits_tile(
    row_ptr,
    e,
    features_ptr,
    start,
    inside,
    more,
    embed,
    features,
    is_row,
    channels,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Logits `[rows, pixels]`, not scaled yet if the factors are in parts."""
    # The pixels of both parts, a run of one and a run of the other in turn.
    COLUMNS: tl.constexpr = BLOCK.pixels * max(VARIANT.parts, 1)
    column = start * max(VARIANT.parts, 1) + tl.arange(0, COLUMNS)
    is_column = if_also(column >= 0, more) if VARIANT.parts > 0 else if_also(inside, more)
    c = tl.arange(0, BLOCK.channels)
    ROWS: tl.constexpr = BLOCK.rows
    x = tl.zeros([ROWS, COLUMNS], tl.float32)
    if not VARIANT.factored:
        x = load_tile(row_ptr, column, embed.pixel_stride, is_row, if_also(inside, more)).to(
            tl.float32
        )
    elif VARIANT.all_channels:
        x = add_product(x, e, features_ptr, c, channels, column, is_column, features, VARIANT)
    else:
        for start_c in range(0, channels, BLOCK.channels):
            k = start_c + c
            loaded = load_embed(row_ptr, k, embed, is_row, channels, VARIANT)
            x = add_product(
                x, loaded, features_ptr, k, channels, column, is_column, features, VARIANT
            )
    if VARIANT.parts == 2:
        of_leading, of_rest = alternate_runs(x, PIXELS_OF_A_RUN)
        x = of_leading + of_rest
    return x


@triton.jit
def wrapped(row, column, sizes):
    """Columns from the beginning of a row, and where those beyond its end are.

    Exact for rows below 2²⁰ pixels.
    """
    further = ((column.to(tl.float32) + 0.5) * (1.0 / plain(sizes.width))).to(tl.int32)
    return row + further, column - further * plain(sizes.width)


@triton.jit
def load_segments(position, inside, t, count, segments_ptr, sizes, ratio, LABEL_MAP: tl.constexpr):
    """At the nearest neighbours of pixels: labels `[pixels, 1]`, or masks `[pixels, segments]`."""
    # In float32, as PyTorch does it.
    target_y = (position[0].to(tl.float32) * ratio.vertical).to(tl.int32)
    target_x = (position[1].to(tl.float32) * ratio.horizontal).to(tl.int32)
    target_y = tl.minimum(target_y, sizes.target_height - 1)
    target_x = tl.minimum(target_x, sizes.target_width - 1)
    pixel_ptr = segments_ptr + (target_y.to(tl.int64) * sizes.target_width + target_x)[:, None]
    if LABEL_MAP:
        value = tl.load(pixel_ptr, mask=inside[:, None], other=-1)
    else:
        size = tl.full(t.shape, sizes.target_height, tl.int64) * sizes.target_width
        in_masks = inside[:, None] & (t < count)[None, :]
        value = tl.load(pixel_ptr + (t * size)[None, :], mask=in_masks, other=0)
    return value


@triton.jit
def members_of(value, inside, t, max_count, LABEL_MAP: tl.constexpr):
    """`[pixels, segments]`: 1 where a pixel lies in a segment, else 0.

    The column after the last segment stands for the whole image.
    """
    member = value.to(tl.int32) == t[None, :] if LABEL_MAP else value != 0
    return (member | (inside[:, None] & (t == max_count)[None, :])).to(tl.float32)


@triton.jit
def focal_maps(y, focal, SQUARE: tl.constexpr):
    """sigmoid(x), weighted f₊ and weighted f₋ of y = −x log₂e, in logarithms to base 2."""
    e = exp2(tl.minimum(y, 62.0, propagate_nan=tl.PropagateNan.ALL))
    sigmoid = reciprocal_of_pairs(1.0 + e)
    # What −log₂ of sigmoid(x) and of sigmoid(−x) are.
    of_plus = tl.maximum(log2(1.0 + e), y)
    of_minus = of_plus - y
    if SQUARE:
        other = focal.positive - focal.positive * sigmoid
        positive = other * other
        negative = sigmoid * sigmoid
    else:
        positive = focal.positive * focal.positive * exp2(-focal.gamma * of_minus)
        negative = exp2(-focal.gamma * of_plus)
    return sigmoid, positive * of_plus, focal.negative * negative * of_minus


@triton.jit
def turned(x):
    """`x` with its columns in the order in which a tensor core's factor in float32 has them.

    Of 8 columns a thread has two neighbours in a product, but two at a distance of 4 in a factor.
    """
    R: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    return tl.reshape(tl.permute(tl.reshape(x, [R, C // 8, 4, 2]), [0, 1, 3, 2]), [R, C])


@triton.jit
def sums_of_threads(x):
    """`[rows, 4]`: what each of the four threads that share a row of a product has of it."""
    return tl.sum(tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 4, 2]), 3), 1)


@triton.jit
def add_sums(sums, x, members):
    """`sums + x @ members`: zeros and ones are exact, and so are, to 22 bits, two parts of `x`."""
    leading, rest = tf32_parts(turned(x))
    sums = tl.dot(leading, members, sums, input_precision="tf32")
    return tl.dot(rest, members, sums, input_precision="tf32")


@triton.jit
def store_sums(partial, gain, sigmoid, all_negative, area, split_index, row, t, sizes, focal):
    image, images = tl.program_id(2), tl.num_programs(2)
    rows, max_count = sizes.rows, plain(sizes.max_count)
    is_row = row < rows
    row_index = (split_index.to(tl.int64) * images + image) * rows + row
    gain_ptr = partial.sums_ptr + row_index * (2 * max_count + 2)
    sigmoid_ptr = gain_ptr + max_count + 1
    stored = is_row[:, None] & (t < max_count)[None, :]
    tl.store(gain_ptr[:, None] + t[None, :], gain * focal.scale, mask=stored)
    stored = is_row[:, None] & (t <= max_count)[None, :]
    tl.store(sigmoid_ptr[:, None] + t[None, :], sigmoid, mask=stored)
    if tl.sum((t == 0).to(tl.int32)) == 1:
        negative = tl.sum(all_negative, 1) * focal.scale
        tl.store(gain_ptr + max_count, negative, mask=is_row)
    if tl.program_id(0) == 0:
        areas_offset = (split_index.to(tl.int64) * images + image) * max_count
        tl.store(partial.areas_ptr + areas_offset + t, tl.sum(area, 0), mask=t < max_count)


@triton.jit
def sums_kernel(
    masks,
    counts_ptr,
    partial,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums over one split of the pixels, which `PartialSums` describes."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_P: tl.constexpr = BLOCK.pixels
    BLOCK_T: tl.constexpr = BLOCK.segments
    factors, sizes, ratio, focal = masks.factors, masks.sizes, masks.ratio, masks.focal
    COLUMNS: tl.constexpr = 1 if VARIANT.label_map else BLOCK.segments
    NONE: tl.constexpr = -1 if VARIANT.label_map else 0
    pixels = plain(sizes.height) * plain(sizes.width)
    target_tiles = tl.cdiv(plain(sizes.max_count) + 1, BLOCK_T)
    split_index = tl.program_id(1) // target_tiles
    image = tl.program_id(2)
    count, first = segments_of_image(counts_ptr, image, BLOCK.images)
    t = tl.program_id(1) % target_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    target_size = sizes.target_height.to(tl.int64) * sizes.target_width
    segments_ptr = masks.segments_ptr + (image if VARIANT.label_map else first) * target_size
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = row < sizes.rows
    embed, features = factors.embed, factors.features
    row_ptr = embed.ptr + row_offset(row // sizes.queries, image, row % sizes.queries, embed)
    features_ptr = features.ptr + image.to(tl.int64) * features.image_stride
    e = row_ptr
    if VARIANT.factored and VARIANT.all_channels:
        c = tl.arange(0, BLOCK.channels)
        e = load_embed(row_ptr, c, embed, is_row, sizes.channels, VARIANT)
    if VARIANT.parts > 0:
        row_scale = tl.load(factors.embed_scales_ptr + image * sizes.rows + row, is_row, 0.0)
        scales_ptr = factors.features_scales_ptr + image * tl.cdiv(pixels, PIXELS_OF_A_SCALE)

    gain_sums = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    sigmoid_sums = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    all_negative = tl.zeros([BLOCK_R, 4], tl.float32)
    area = tl.zeros([BLOCK_P, BLOCK_T], tl.float32)
    index = tl.arange(0, BLOCK_P)
    turned_index = (index & -8) + 2 * (index & 3) + ((index >> 2) & 1)
    begin = split_index * BLOCK.pixels_of_split
    end = min(begin + BLOCK.pixels_of_split, pixels)
    row_y, row_x = begin // plain(sizes.width), begin % plain(sizes.width)
    # The first turn has no pixels yet: no segment, and a logit so small that it counts as 0.
    segments = tl.full([BLOCK_P, COLUMNS], NONE, segments_ptr.dtype.element_ty)
    y = tl.full([BLOCK_R, BLOCK_P], 62.0, tl.float32)
    # A turn reads what the next one needs, and forms its logits last, so that memory has time.
    for start in tl.range(begin - BLOCK_P, end, BLOCK_P, num_stages=BLOCK.stages):
        is_pixel = if_also(turned_index < pixels - start, start >= begin)
        members = members_of(segments, is_pixel, t, plain(sizes.max_count), VARIANT.label_map)
        area += members
        after = start + BLOCK_P
        is_pixel = turned_index < end - after
        position = wrapped(row_y, row_x + turned_index, sizes)
        segments = load_segments(
            position, is_pixel, t, count, segments_ptr, sizes, ratio, VARIANT.label_map
        )
        row_y, row_x = wrapped(row_y, row_x + BLOCK_P, sizes)
        scale = tl.full([BLOCK_R], 1.0, tl.float32)
        if VARIANT.parts > 0:
            block_scale = tl.load(scales_ptr + after // PIXELS_OF_A_SCALE, after < end, 0.0)
            scale = tl.minimum(row_scale * block_scale, 2.0e38)

        sigmoid, positive, negative = focal_maps(y, focal, VARIANT.square)
        gain = positive - negative
        if not VARIANT.whole_tiles:
            negative = tl.where((index < pixels - start)[None, :], negative, 0.0)
        all_negative += sums_of_threads(negative)
        gain_sums = add_sums(gain_sums, gain, members)
        sigmoid_sums = add_sums(sigmoid_sums, sigmoid, members)

        inside = tl.full([BLOCK_P], True, tl.int1)
        if not VARIANT.whole_tiles:
            inside = index < pixels - after
        logits = logits_tile(
            *(row_ptr, e, features_ptr, after, inside, after < end),
            *(embed, features, is_row, sizes.channels, VARIANT, BLOCK),
        )
        y = logits * (scale * MINUS_LOG2_E)[:, None]
    store_sums(
        partial, gain_sums, sigmoid_sums, all_negative, area, split_index, row, t, sizes, focal
    )
