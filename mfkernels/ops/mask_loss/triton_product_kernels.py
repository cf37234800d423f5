"""Matrix products of the mask loss: logits of matched queries, and gradients of both factors."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton.arguments import unspecialized
from mfkernels.triton.math import (
    if_also,
    load_tile,
    plain,
    row_offset,
    segments_of_image,
    store_columns,
)
from mfkernels.triton.products import add_product

SEGMENTS = tl.constexpr(32)
"""How many segments are searched at a time for those that a query is matched to."""
SPLITS = tl.constexpr(8)
"""How many splits are loaded at a time when partial sums are added up."""


class Matching(NamedTuple):
    """The segments of each image, and the query that each is matched to."""

    assignment_ptr: Tensor
    """`[L, B, T]`, −1 for none."""
    counts_ptr: Tensor
    """`[B]`."""


class Sizes(NamedTuple):
    """The sizes of a launch for the group of images that starts at `first_image`."""

    first_image: int
    images: int
    layers: int
    queries: int
    max_count: int
    num_segments: int
    """The number of segments in all images."""
    layer_rows: int
    """Rows per layer in workspaces `[L, rows, h·w]`: if `packed`, the segments of all images
    without gaps, otherwise `max_count` rows for each image of the group."""
    packed: int
    """1 or 0."""

    def as_argument(self) -> Sizes:
        """Return the argument of kernels, which decode what varies by batch with `plain`."""
        varying = ("first_image", "max_count", "num_segments", "layer_rows", "packed")
        return self._replace(**{name: unspecialized(getattr(self, name)) for name in varying})


class ProductSizes(NamedTuple):
    """`Sizes`, and the numbers of channels and of mask pixels."""

    first_image: int
    images: int
    layers: int
    queries: int
    channels: int
    pixels: int
    max_count: int
    num_segments: int
    layer_rows: int
    packed: int


class ProductBlock(NamedTuple):
    """The tile of a matrix product."""

    rows: int
    channels: int
    pixels: int
    more_rows: int = 0
    """Rows of a second tile that uses the same features: 64 + 16 rows pad less than 128, and the
    sizes of tiles must be powers of 2."""
    pixels_of_split: int = 0
    """The pixels that one program sums over, if they are the reduction axis."""


@triton.jit
def matched_rows(row, count, image, matching, sizes):
    """Layer, segment, index in `[L, B, T]` and query (−1: none) of rows of an image.

    The rows of an image are its segments in the first layer, then those in the second, and so on.
    """
    inside = (row >= 0) & (row < sizes.layers * count)
    # A division in float32, exact below 2²⁰ rows, takes a third of the instructions of an integer
    # division.
    count = tl.maximum(count, 1)
    layer = ((row.to(tl.float32) + 0.5) * (1.0 / count.to(tl.float32))).to(tl.int32)
    segment = row - layer * count
    index = (layer.to(tl.int64) * sizes.images + image) * plain(sizes.max_count) + segment
    query = tl.load(matching.assignment_ptr + index, mask=inside, other=-1)
    return layer, segment, index, tl.where(query < sizes.queries, query, -1)


@triton.jit
def image_of_program(matching, sizes, IMAGES: tl.constexpr):
    """The image of this program, the number of its segments, and the index of its first segment.

    The third program id is the index of the image in the group.
    """
    image = plain(sizes.first_image) + tl.program_id(2)
    max_count, num_segments = plain(sizes.max_count), plain(sizes.num_segments)
    count, first = segments_of_image(matching.counts_ptr, image, max_count, num_segments, IMAGES)
    return image, count, first


@triton.jit
def packed_index(layer, segment, first, sizes):
    """Index in `[L, N]` of segments of an image whose first segment has the index `first`."""
    return (layer * plain(sizes.num_segments) + (first + segment)).to(tl.int64)


@triton.jit
def workspace_index(layer, segment, first, sizes):
    """Index in a workspace `[L, rows]` of segments of this program's image."""
    in_group = tl.program_id(2) * plain(sizes.max_count)
    origin = tl.where(plain(sizes.packed) == 1, first, in_group)
    return (layer * plain(sizes.layer_rows) + (origin + segment)).to(tl.int64)


@triton.jit
def logits_kernel(
    embed,
    features,
    matching,
    logits_ptr,
    sizes,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """`logits [L, rows, h·w]` of matched segments; other rows are not written.

    The product is transposed, with pixels as its rows, so that the features are its left factor:
    they are split into planes in registers, from where Hopper reads only a left factor.
    """
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_P: tl.constexpr = BLOCK.pixels
    MORE: tl.constexpr = BLOCK.more_rows
    channels, pixels = sizes.channels, sizes.pixels
    row_tiles = tl.cdiv(sizes.layers * plain(sizes.max_count), BLOCK_R + MORE)
    first_row = (tl.program_id(0) % row_tiles) * (BLOCK_R + MORE)
    image, count, first = image_of_program(matching, sizes, IMAGES)
    if first_row < sizes.layers * count:
        row = first_row + tl.arange(0, BLOCK_R)
        layer, segment, _, query = matched_rows(row, count, image, matching, sizes)
        row_ptr = embed.ptr + row_offset(layer, image, query, embed)
        features_ptr = features.ptr + image.to(tl.int64) * features.image_stride
        p = (tl.program_id(0) // row_tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        pixel_ptr = features_ptr + p.to(tl.int64) * features.pixel_stride
        total = tl.zeros([BLOCK_P, BLOCK_R], tl.float32)
        if MORE:
            row2 = first_row + BLOCK.rows + tl.arange(0, MORE)
            layer2, segment2, _, query2 = matched_rows(row2, count, image, matching, sizes)
            row2_ptr = embed.ptr + row_offset(layer2, image, query2, embed)
            total2 = tl.zeros([BLOCK_P, MORE], tl.float32)
        for start in range(0, channels, BLOCK.channels):
            c = start + tl.arange(0, BLOCK.channels)
            f = load_tile(pixel_ptr, c, features.channel_stride, p < pixels, c < channels)
            e = load_tile(row_ptr, c, embed.channel_stride, query >= 0, c < channels)
            total = add_product(f, tl.trans(e), total, PLANES)
            if MORE:
                e = load_tile(row2_ptr, c, embed.channel_stride, query2 >= 0, c < channels)
                total2 = add_product(f, tl.trans(e), total2, PLANES)
        line_ptr = logits_ptr + workspace_index(layer, segment, first, sizes) * pixels
        store_columns(line_ptr, p, total, query >= 0, p < pixels)
        if MORE:
            line_ptr = logits_ptr + workspace_index(layer2, segment2, first, sizes) * pixels
            store_columns(line_ptr, p, total2, query2 >= 0, p < pixels)


@triton.jit
def grad_embed_kernel(
    grad_ptr,
    features,
    matching,
    partial_ptr,
    sizes,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """`partial [splits, L, B, T, C]`: grad_logits · featuresᵀ, summed over one split of the pixels.

    The product is transposed, with channels as its rows, for the same reason as in `logits_kernel`.
    """
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_C: tl.constexpr = BLOCK.channels
    MORE: tl.constexpr = BLOCK.more_rows
    channels, pixels = sizes.channels, sizes.pixels
    channel_tiles = tl.cdiv(channels, BLOCK_C)
    first_row = (tl.program_id(0) // channel_tiles) * (BLOCK_R + MORE)
    image, count, first = image_of_program(matching, sizes, IMAGES)
    if first_row < sizes.layers * count:
        row = first_row + tl.arange(0, BLOCK_R)
        layer, segment, index, query = matched_rows(row, count, image, matching, sizes)
        row_ptr = grad_ptr + workspace_index(layer, segment, first, sizes) * pixels
        c = (tl.program_id(0) % channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
        features_ptr = features.ptr + image.to(tl.int64) * features.image_stride
        channel_ptr = features_ptr + c.to(tl.int64) * features.channel_stride
        total = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
        if MORE:
            row2 = first_row + BLOCK.rows + tl.arange(0, MORE)
            layer2, segment2, index2, query2 = matched_rows(row2, count, image, matching, sizes)
            row2_ptr = grad_ptr + workspace_index(layer2, segment2, first, sizes) * pixels
            total2 = tl.zeros([BLOCK_C, MORE], tl.float32)
        begin = tl.program_id(1) * BLOCK.pixels_of_split
        end = tl.minimum(begin + BLOCK.pixels_of_split, pixels)
        for start in range(begin, end, BLOCK.pixels):
            p = start + tl.arange(0, BLOCK.pixels)
            f = load_tile(channel_ptr, p, features.pixel_stride, c < channels, p < pixels)
            grad = load_tile(row_ptr, p, 1, query >= 0, p < pixels)
            total = add_product(f, tl.trans(grad), total, PLANES)
            if MORE:
                grad = load_tile(row2_ptr, p, 1, query2 >= 0, p < pixels)
                total2 = add_product(f, tl.trans(grad), total2, PLANES)
        rows_of_split = tl.full([], sizes.layers, tl.int64) * sizes.images * plain(sizes.max_count)
        partial_ptr += tl.program_id(1) * rows_of_split * channels
        line_ptr = partial_ptr + index * channels
        store_columns(line_ptr, c, total, query >= 0, c < channels)
        if MORE:
            line_ptr = partial_ptr + index2 * channels
            store_columns(line_ptr, c, total2, query2 >= 0, c < channels)


@triton.jit
def is_matched(query, segment, count, first, matching):
    """Which segments of an image a query is matched to; `first`: its offset in the assignment."""
    found = tl.load(matching.assignment_ptr + first + segment, mask=segment < count, other=-1)
    return found == query


@triton.jit
def next_matched(matched, segment, count):
    """The first matched segment, and the mask without it."""
    first = tl.min(tl.where(matched, segment, count))
    return first, matched & (segment != first)


@triton.jit(do_not_specialize=["splits"])
def grad_embed_sum_kernel(
    partial_ptr, matching, grad_embed_ptr, sizes, splits, BLOCK_C: tl.constexpr
):
    """`grad_embed [L, B, Q, C]`: the sum over splits, and over the segments of each query."""
    queries, channels, max_count = sizes.queries, sizes.channels, plain(sizes.max_count)
    layer, query = tl.program_id(0) // queries, tl.program_id(0) % queries
    image, images = tl.program_id(2), tl.num_programs(2)
    # Unsigned, a number below 0 is too large as well, and both ends take one comparison.
    count = tl.load(matching.counts_ptr + image).to(tl.uint64)
    count = tl.minimum(count, max_count.to(tl.uint64)).to(tl.int32)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows_of_split = tl.full([], sizes.layers, tl.int64) * images * max_count
    layer_image = layer.to(tl.int64) * images + image
    total = tl.zeros([BLOCK_C], tl.float32)
    # Blocks of segments are searched at once, because most queries are matched to none; blocks of
    # splits are loaded at once to overlap their latencies.
    for start in range(0, count, SEGMENTS):
        candidate = start + tl.arange(0, SEGMENTS)
        matched = is_matched(query, candidate, count, layer_image * max_count, matching)
        for _ in range(tl.sum(matched.to(tl.int32))):
            segment, matched = next_matched(matched, candidate, count)
            row_ptr = partial_ptr + (layer_image * max_count + segment) * channels
            for first in range(0, splits, SPLITS):
                for split in tl.static_range(SPLITS):
                    split_ptr = row_ptr + (first + split) * rows_of_split * channels
                    inside = if_also(c < channels, first + split < splits)
                    total += tl.load(split_ptr + c, mask=inside, other=0.0)
    offset = (layer_image * queries + query) * channels
    tl.store(grad_embed_ptr + offset + c, total, mask=c < channels)


@triton.jit
def grad_features_kernel(
    grad_ptr,
    embed,
    matching,
    grad_features,
    sizes,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """`grad_features [B, C, h·w]`: embedᵀ · grad_logits, summed over the rows of each image."""
    BLOCK_C: tl.constexpr = BLOCK.channels
    BLOCK_P: tl.constexpr = BLOCK.pixels
    channels, pixels = sizes.channels, sizes.pixels
    image, count, first = image_of_program(matching, sizes, IMAGES)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(0, sizes.layers * count, BLOCK.rows):
        row = start + tl.arange(0, BLOCK.rows)
        layer, segment, _, query = matched_rows(row, count, image, matching, sizes)
        matched = query >= 0
        group_index = workspace_index(layer, segment, first, sizes)
        grad = load_tile(grad_ptr + group_index * pixels, p, 1, matched, p < pixels)
        row_ptr = embed.ptr + row_offset(layer, image, query, embed)
        e = load_tile(row_ptr, c, embed.channel_stride, matched, c < channels)
        total = add_product(tl.trans(e), grad, total, PLANES)
    offset = image.to(tl.int64) * grad_features.image_stride
    row = offset + c.to(tl.int64) * grad_features.channel_stride
    tl.store(
        grad_features.ptr + row[:, None] + (p.to(tl.int64) * grad_features.pixel_stride)[None, :],
        total,
        mask=(c < channels)[:, None] & (p < pixels)[None, :],
    )


@triton.jit
def scatter_kernel(
    grad_matched_ptr, matching, grad_logits_ptr, sizes, BLOCK: tl.constexpr, IMAGES: tl.constexpr
):
    """`grad_logits [L, B, Q, h·w]` of dense logits: the sum over the segments of each query."""
    queries, pixels, max_count = sizes.queries, sizes.pixels, plain(sizes.max_count)
    layer, query = tl.program_id(1) // queries, tl.program_id(1) % queries
    image, count, first = image_of_program(matching, sizes, IMAGES)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer_image = layer.to(tl.int64) * sizes.images + image
    total = tl.zeros([BLOCK], tl.float32)
    # Blocks of segments are searched at once, because most queries are matched to none.
    for start in range(0, count, SEGMENTS):
        candidate = start + tl.arange(0, SEGMENTS)
        matched = is_matched(query, candidate, count, layer_image * max_count, matching)
        for _ in range(tl.sum(matched.to(tl.int32))):
            segment, matched = next_matched(matched, candidate, count)
            group_index = workspace_index(layer, segment, first, sizes)
            total += tl.load(
                grad_matched_ptr + group_index * pixels + p, mask=p < pixels, other=0.0
            )
    offset = (layer_image * queries + query) * pixels
    tl.store(grad_logits_ptr + offset + p, total, mask=p < pixels)
