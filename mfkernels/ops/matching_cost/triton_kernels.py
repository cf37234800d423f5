"""The first of two kernels of the matching cost; logits exist in registers only.

A program processes a block of rows (a row is a query of a layer) of one image, and one split of its
pixels. For each block of pixels, it computes a tile of logits, applies the sigmoid and the focal
terms elementwise, and multiplies the results with the one-hot segments of the pixels. Splits store
partial sums; the second kernel (`triton_cost`) adds them up in a fixed order and computes the cost.

The results of the first product are used as left factors of the second one without leaving their
registers: in TF32, in two parts each, with their columns only relabelled (`to_operand_layout`).
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
    """What this kernel stores for the second one."""

    sums_ptr: Tensor
    """`[splits, B, rows, 2 T + 2]`: Σ (f₊ − f₋) over each segment and Σ f₋ over all pixels; then
    Σ s over each segment and over all pixels. s is the sigmoid of the logit, f₊ and f₋ are the
    focal loss for a target of 1 and 0."""
    areas_ptr: Tensor
    """`[splits, B, T]`: the number of pixels of each segment."""


class Factors(NamedTuple):
    """Embeddings and features, or dense logits as `embed`."""

    embed: Predictions
    features: Features
    embed_scales_ptr: Tensor | int = 1
    """`[B, rows]` and `[B, blocks]`: the scales of factors that are split into parts; their product
    must be applied to the logits."""
    features_scales_ptr: Tensor | int = 1


class Sizes(NamedTuple):
    """The sizes of a call; rows are the queries of all layers."""

    rows: int
    queries: int
    channels: int
    height: int
    width: int
    target_height: int
    target_width: int
    max_count: int
    num_segments: int
    """In the whole batch."""

    def as_argument(self) -> Sizes:
        """Return the argument of kernels, which decode mask sizes and counts with `plain`."""
        return self._replace(
            height=unspecialized(self.height),
            width=unspecialized(self.width),
            max_count=unspecialized(self.max_count),
            num_segments=unspecialized(self.num_segments),
        )


class Ratio(NamedTuple):
    """The ratio of target size to mask size."""

    vertical: float
    horizontal: float


class Focal(NamedTuple):
    """The parameters of the focal loss, as scale · (positive² · f₊ − negative · f₋).

    f₊ and f₋ are without α here, and use logarithms to base 2, which `scale` converts.
    """

    scale: float
    positive: float
    """The square root of the weight, as it multiplies the base of the square."""
    negative: float
    """If this is the larger weight, the integer 1, which Triton makes a constant."""
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
    """Predicted masks and segments, and the parameters of the focal loss between them."""

    factors: Factors
    segments_ptr: Tensor
    sizes: Sizes
    ratio: Ratio
    focal: Focal

    def as_argument(self) -> Masks:
        """Return the argument of kernels."""
        return self._replace(sizes=self.sizes.as_argument())


class Variant(NamedTuple):
    """The cases that the kernels are specialised for."""

    factored: bool
    all_channels: bool
    """One block holds all channels."""
    whole_tiles: bool
    """The number of pixels is a multiple of the block size."""
    label_map: bool
    square: bool
    """γ is 2."""
    parts: int
    """The number of float16 tensors that each factor is split into, see `triton_parts`; 0: the
    factors are used as they are."""


class Block(NamedTuple):
    """Block sizes of the first kernel."""

    rows: int
    pixels: int
    channels: int
    segments: int
    images: int
    pixels_of_split: int
    stages: int


@triton.jit
def load_embed(row_ptr, c, embed, is_row, channels, VARIANT: tl.constexpr):
    """Tiles of both parts of the embeddings; if there is only one part, it is returned twice."""
    e = load_tile(row_ptr, c, embed.channel_stride, is_row, c < channels)
    if VARIANT.parts == 2:
        rest = load_tile(row_ptr + channels, c, embed.channel_stride, is_row, c < channels)
    else:
        rest = e
    return e, rest


@triton.jit
def add_product(x, e, features_ptr, c, channels, column, inside, features, VARIANT: tl.constexpr):
    """`x` plus the product of a block of channels of embeddings and features."""
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
    """Logits `[rows, pixels]`; if the factors are split into parts, still without their scales.

    `e` holds the embeddings if one block holds all channels. `more` is False after the last block:
    nothing is loaded then.
    """
    # Runs of pixels of the two parts of the features alternate in memory.
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
def wrap_columns(row, column, sizes):
    """Move columns beyond the end of a row to the rows that follow: new row and column.

    Exact for columns below 2²⁰.
    """
    rows = ((column.to(tl.float32) + 0.5) * (1.0 / plain(sizes.width))).to(tl.int32)
    return row + rows, column - rows * plain(sizes.width)


@triton.jit
def load_segments(position, inside, t, count, segments_ptr, sizes, ratio, LABEL_MAP: tl.constexpr):
    """Targets at the nearest neighbours of mask pixels.

    They are indices of segments `[pixels, 1]`, or masks `[pixels, segments]`.
    """
    # The position is computed in float32, as PyTorch does.
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
    """`[pixels, segments]` float32: 1 where a pixel belongs to a segment, otherwise 0.

    The column after the last segment is 1 at all pixels, for sums over the whole image.
    """
    member = value.to(tl.int32) == t[None, :] if LABEL_MAP else value != 0
    return (member | (inside[:, None] & (t == max_count)[None, :])).to(tl.float32)


@triton.jit
def focal_maps(y, focal, SQUARE: tl.constexpr):
    """sigmoid(x), weighted f₊ and weighted f₋ of y = −x log₂e, with logarithms to base 2."""
    e = exp2(tl.minimum(y, 62.0, propagate_nan=tl.PropagateNan.ALL))
    sigmoid = reciprocal_of_pairs(1.0 + e)
    # The cross-entropies −log₂ sigmoid(x) and −log₂ sigmoid(−x).
    entropy_positive = tl.maximum(log2(1.0 + e), y)
    entropy_negative = entropy_positive - y
    if SQUARE:
        other = focal.positive - focal.positive * sigmoid
        positive = other * other
        negative = sigmoid * sigmoid
    else:
        positive = focal.positive * focal.positive * exp2(-focal.gamma * entropy_negative)
        negative = exp2(-focal.gamma * entropy_positive)
    return sigmoid, positive * entropy_positive, focal.negative * negative * entropy_negative


@triton.jit
def to_operand_layout(x):
    """Relabel the columns of the result of a product so that it can be the factor of another one.

    Of each 8 columns, a thread holds two adjacent ones of the result of a tensor-core product, but
    two at a distance of 4 of a TF32 operand. With this permutation of the columns, values stay in
    their registers; the other factor must have its rows permuted in the same way.
    """
    R: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    return tl.reshape(tl.permute(tl.reshape(x, [R, C // 8, 4, 2]), [0, 1, 3, 2]), [R, C])


@triton.jit
def sum_by_thread(x):
    """`[rows, 4]`: the sum over the elements of a row that each of its four threads holds."""
    return tl.sum(tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 4, 2]), 3), 1)


@triton.jit
def add_sums(sums, x, members):
    """`sums + x @ members` in TF32: 0 and 1 are exact, and two parts of `x` hold 22 bits of it."""
    leading, rest = tf32_parts(to_operand_layout(x))
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
    """Partial sums over one split of the pixels; see `PartialSums`."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_P: tl.constexpr = BLOCK.pixels
    BLOCK_T: tl.constexpr = BLOCK.segments
    factors, sizes, ratio, focal = masks.factors, masks.sizes, masks.ratio, masks.focal
    COLUMNS: tl.constexpr = 1 if VARIANT.label_map else BLOCK.segments
    NONE: tl.constexpr = -1 if VARIANT.label_map else 0
    pixels = plain(sizes.height) * plain(sizes.width)
    max_count, num_segments = plain(sizes.max_count), plain(sizes.num_segments)
    target_tiles = tl.cdiv(max_count + 1, BLOCK_T)
    split_index = tl.program_id(1) // target_tiles
    image = tl.program_id(2)
    count, first = segments_of_image(counts_ptr, image, max_count, num_segments, BLOCK.images)
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
    permuted_index = (index & -8) + 2 * (index & 3) + ((index >> 2) & 1)
    begin = split_index * BLOCK.pixels_of_split
    end = min(begin + BLOCK.pixels_of_split, pixels)
    row_y, row_x = begin // plain(sizes.width), begin % plain(sizes.width)
    # The first iteration has no pixels yet: no segments, so that the focal term of positives does
    # not count, and such a negative logit that its sigmoid and the other focal term vanish.
    segments = tl.full([BLOCK_P, COLUMNS], NONE, segments_ptr.dtype.element_ty)
    y = tl.full([BLOCK_R, BLOCK_P], 62.0, tl.float32)
    # Each iteration loads the segments of the next one first, and computes its logits last, which
    # hides the latency of memory.
    for start in tl.range(begin - BLOCK_P, end, BLOCK_P, num_stages=BLOCK.stages):
        is_pixel = if_also(permuted_index < pixels - start, start >= begin)
        members = members_of(segments, is_pixel, t, max_count, VARIANT.label_map)
        area += members
        after = start + BLOCK_P
        is_pixel = permuted_index < end - after
        position = wrap_columns(row_y, row_x + permuted_index, sizes)
        segments = load_segments(
            position, is_pixel, t, count, segments_ptr, sizes, ratio, VARIANT.label_map
        )
        row_y, row_x = wrap_columns(row_y, row_x + BLOCK_P, sizes)
        scale = tl.full([BLOCK_R], 1.0, tl.float32)
        if VARIANT.parts > 0:
            block_scale = tl.load(scales_ptr + after // PIXELS_OF_A_SCALE, after < end, 0.0)
            scale = tl.minimum(row_scale * block_scale, 2.0e38)

        sigmoid, positive, negative = focal_maps(y, focal, VARIANT.square)
        gain = positive - negative
        if not VARIANT.whole_tiles:
            negative = tl.where((index < pixels - start)[None, :], negative, 0.0)
        all_negative += sum_by_thread(negative)
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
