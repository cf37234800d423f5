"""Semantic label maps and panoptic owner maps of one image, streamed over tiles of the result.

A program takes a tile of pixels and walks over chunks of queries: it interpolates their logits,
takes sigmoids, and multiplies them with the class probabilities on tensor cores (semantic) or looks
for the largest (panoptic). Neither masks nor scores of the size of the result are stored.

The best class is first guessed: with one product in half precision, and without the queries that
matter least. The guess stands if no error of it can exceed the lead of the best class over the
second at any pixel of the tile; otherwise the tile is computed in full, as exactly as float32.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.segmentation.triton_logits_by_pixel import (
    mask_values,
)
from mfkernels.triton.arguments import MaskAxis
from mfkernels.triton.math import if_also

# What a view's description, int64 `[FIELDS]`, holds where. `View` is what the host knows of it.
FIRST_CHUNK, FIRST_ROW, CHUNKS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MASK_HEIGHT, MASK_WIDTH = tl.constexpr(3), tl.constexpr(4)
INPUT_HEIGHT, INPUT_WIDTH = tl.constexpr(5), tl.constexpr(6)
IMAGE_HEIGHT, IMAGE_WIDTH = tl.constexpr(7), tl.constexpr(8)
FLIPPED, QUERIES_OF_GUESS = tl.constexpr(9), tl.constexpr(10)
FIELDS = tl.constexpr(11)
_SCALE = tl.constexpr(1024.0)
# Half precision of both factors is off by at most 2^-11 each, relatively: best and second together
# by 2^-9 of the best; the rest is for the rounding of sums. The scale avoids denormal numbers.
_DOUBT = tl.constexpr(0.002)


class View(NamedTuple):
    """Of one view: where its part of the workspaces lies, its sizes, and whether it is mirrored.

    The logits of a view begin with chunk `first_chunk` and have `chunks` chunks of columns; its
    probabilities begin with row `first_row`.
    """

    first_chunk: int
    first_row: int
    chunks: int
    mask_height: int
    mask_width: int
    input_height: int
    input_width: int
    image_height: int
    image_width: int
    flipped: int


class Negligible(NamedTuple):
    """The most that queries without part in the guess may add to a score: all, and a single one."""

    together: float
    single: float


class PrepareSizes(NamedTuple):
    queries: int
    classes: int
    probability_stride: int
    """From query to query."""
    all_columns: int
    class_columns: int


class PrepareBlock(NamedTuple):
    """How many of each a program takes at a time."""

    queries: int
    classes: int


class SemanticSizes(NamedTuple):
    views: int
    classes: int
    all_columns: int
    class_columns: int
    height: int
    width: int


class SemanticVariant(NamedTuple):
    """What the semantic kernel is compiled for."""

    in_full: bool
    scores: bool
    resized: bool
    resize_logits: bool


class OwnersSizes(NamedTuple):
    columns: int
    mask_height: int
    mask_width: int
    input_height: int
    input_width: int
    image_height: int
    image_width: int
    height: int
    width: int


class Tile(NamedTuple):
    """Pixels of the result that a program takes."""

    height: int
    width: int


class SemanticBlock(NamedTuple):
    """How many of each a program takes at a time."""

    classes: int
    queries: int
    """A divisor of CHUNK."""


TILE = Tile(8, 8)


@triton.jit
def pixels_of_tile(height, width, TILE: tl.constexpr):
    """Row and column of each pixel of this program's tile, and whether it is inside.

    Pixels outside have the position of one that is inside.
    """
    across = tl.cdiv(width, TILE.width)
    p = tl.arange(0, TILE.height * TILE.width)
    y = (tl.program_id(0) // across) * TILE.height + p // TILE.width
    x = (tl.program_id(0) % across) * TILE.width + p % TILE.width
    inside = (y < height) & (x < width)
    return tl.minimum(y, height - 1), tl.minimum(x, width - 1), inside


@triton.jit
def bounds_kernel(probability_ptr, bounds_ptr, classes, probability_stride, BLOCK: tl.constexpr):
    """`bounds [Q]`: the most that a query can add to the score of any class."""
    query = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        p = tl.load(probability_ptr + query * probability_stride + k, mask=k < classes, other=0.0)
        largest = tl.maximum(largest, tl.where(p == p, p, float("inf")))
    tl.store(bounds_ptr + query, tl.max(largest))


@triton.jit
def store_view(description_ptr, view):
    """What the host knows of a view; `QUERIES_OF_GUESS` is left to `prepare_kernel`."""
    tl.store(description_ptr + FIRST_CHUNK, view.first_chunk)
    tl.store(description_ptr + FIRST_ROW, view.first_row)
    tl.store(description_ptr + CHUNKS, view.chunks)
    tl.store(description_ptr + MASK_HEIGHT, view.mask_height)
    tl.store(description_ptr + MASK_WIDTH, view.mask_width)
    tl.store(description_ptr + INPUT_HEIGHT, view.input_height)
    tl.store(description_ptr + INPUT_WIDTH, view.input_width)
    tl.store(description_ptr + IMAGE_HEIGHT, view.image_height)
    tl.store(description_ptr + IMAGE_WIDTH, view.image_width)
    tl.store(description_ptr + FLIPPED, view.flipped)


@triton.jit
def axes_of_view(description_ptr, result_height, result_width):
    """The sizes of a view along the vertical and the horizontal axis."""
    mask_height = tl.load(description_ptr + MASK_HEIGHT).to(tl.int32)
    mask_width = tl.load(description_ptr + MASK_WIDTH).to(tl.int32)
    input_height = tl.load(description_ptr + INPUT_HEIGHT).to(tl.int32)
    input_width = tl.load(description_ptr + INPUT_WIDTH).to(tl.int32)
    image_height = tl.load(description_ptr + IMAGE_HEIGHT).to(tl.int32)
    image_width = tl.load(description_ptr + IMAGE_WIDTH).to(tl.int32)
    vertical = MaskAxis(mask_height, input_height, image_height, result_height)
    horizontal = MaskAxis(mask_width, input_width, image_width, result_width)
    return vertical, horizontal


@triton.jit
def prepare_kernel(
    probability_ptr,
    bounds_ptr,
    order_ptr,
    parts_ptr,
    description_ptr,
    ignored_ptr,
    sizes,
    negligible,
    view,
    BLOCK: tl.constexpr,
):
    """Sort the queries of a view by what they can add, the largest first; describe the view.

    `order [columns]`: the queries, then −1. `parts [2, all columns, class_columns]`: leading and
    trailing part of their probabilities, times _SCALE. `description [FIELDS]`: the view, and how
    many queries the guess uses. `ignored [1]`: what the others add at most.
    """
    BLOCK_Q: tl.constexpr = BLOCK.queries
    queries, classes, class_columns = sizes.queries, sizes.classes, sizes.class_columns
    query = tl.program_id(0)
    bound = tl.load(bounds_ptr + query, mask=query < queries, other=-1.0)
    earlier_queries = tl.zeros([BLOCK_Q], tl.int32)
    after = tl.zeros([BLOCK_Q], tl.float32)
    after_and_own = tl.zeros([BLOCK_Q], tl.float32)
    next_bounds = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, queries, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        other = tl.load(bounds_ptr + q, mask=q < queries, other=-1.0)
        earlier = (other > bound) | ((other == bound) & (q < query))
        earlier_queries += ((q < queries) & earlier).to(tl.int32)
        follows = (q < queries) & ~earlier
        after += tl.where(follows & (q != query), other, 0.0)
        next_bounds = tl.maximum(next_bounds, tl.where(follows & (q != query), other, 0.0))
        after_and_own += tl.where(follows, other, 0.0)
    rank = tl.where(query < queries, tl.sum(earlier_queries), query)
    sum_after, sum_after_and_own = tl.sum(after), tl.sum(after_and_own)
    tl.store(order_ptr + rank, tl.where(query < queries, query, -1))

    # The last query of the guess is the one that is needed while the next one is not.
    needed = (sum_after_and_own > negligible.together) | (bound > negligible.single)
    next_needed = (sum_after > negligible.together) | (tl.max(next_bounds) > negligible.single)
    if needed & ~next_needed & (query < queries):
        tl.store(description_ptr + QUERIES_OF_GUESS, rank + 1)
        tl.store(ignored_ptr, sum_after)
    if ~needed & (rank == 0):
        tl.store(description_ptr + QUERIES_OF_GUESS, 0)
        tl.store(ignored_ptr, sum_after_and_own)
    if query == 0:
        store_view(description_ptr, view)

    for start in range(0, class_columns, BLOCK.classes):
        k = start + tl.arange(0, BLOCK.classes)
        p = tl.load(
            probability_ptr + query.to(tl.int64) * sizes.probability_stride + k,
            mask=if_also(k < classes, query < queries),
            other=0.0,
        )
        leading = (p * _SCALE).to(tl.float16)
        part_ptr = parts_ptr + (view.first_row + rank).to(tl.int64) * class_columns + k
        tl.store(part_ptr, leading, mask=k < class_columns)
        trailing = (p * _SCALE - leading.to(tl.float32)).to(tl.float16)
        all_rows = tl.full([], sizes.all_columns, tl.int64)
        tl.store(part_ptr + all_rows * class_columns, trailing, mask=k < class_columns)


@triton.jit
def scores_of_tile(
    logits_ptr,
    parts_ptr,
    description_ptr,
    y,
    x,
    k,
    sizes,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Scores `[P, K]` of a block of classes at some pixels, all views together; in full or guessed.

    BLOCK.queries queries at a time, a divisor of CHUNK.
    """
    BLOCK_K: tl.constexpr = BLOCK.classes
    PIXELS: tl.constexpr = TILE.height * TILE.width
    total = tl.zeros([PIXELS, BLOCK_K], tl.float32)
    for view in range(sizes.views):
        view_ptr = description_ptr + view * FIELDS
        chunks = tl.load(view_ptr + CHUNKS).to(tl.int32)
        used = chunks
        if not VARIANT.in_full:
            used = tl.cdiv(tl.load(view_ptr + QUERIES_OF_GUESS).to(tl.int32), CHUNK)
        view_logits_ptr = logits_ptr + tl.load(view_ptr + FIRST_CHUNK) * CHUNK
        row = tl.load(view_ptr + FIRST_ROW).to(tl.int32)
        vertical, horizontal = axes_of_view(view_ptr, sizes.height, sizes.width)
        column = tl.where(tl.load(view_ptr + FLIPPED) != 0, sizes.width - 1 - x, x)
        for step in range(used * (CHUNK // BLOCK.queries)):
            q = step * BLOCK.queries + tl.arange(0, BLOCK.queries)
            values = mask_values(
                view_logits_ptr,
                chunks * CHUNK,
                q,
                y,
                column,
                vertical,
                horizontal,
                VARIANT.resized,
                VARIANT.resize_logits,
            )
            values *= _SCALE
            leading = values.to(tl.float16)
            trailing = (values - leading.to(tl.float32)).to(tl.float16)
            # Leading · leading alone, or with the two products that matter next.
            for product in range(3 if VARIANT.in_full else 1):
                first_row = row + tl.where(product == 2, sizes.all_columns, 0)
                offset = ((first_row + q) * sizes.class_columns)[:, None] + k[None, :]
                factor = tl.where(product == 1, trailing, leading)
                total = tl.dot(factor, tl.load(parts_ptr + offset), total)
    return total * (1.0 / (_SCALE * _SCALE))


@triton.jit
def semantic_kernel(
    logits_ptr,
    parts_ptr,
    description_ptr,
    ignored_ptr,
    unsure_ptr,
    labels_ptr,
    scores_ptr,
    sizes,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`labels [H, W]` of a tile of pixels, and `scores [K, H, W]` if they are asked for.

    `unsure [tiles]`: written by the guess; the tiles that are computed in full.
    """
    PIXELS: tl.constexpr = TILE.height * TILE.width
    if VARIANT.in_full and not VARIANT.scores:  # noqa: SIM102 (`and` would load in either case)
        if tl.load(unsure_ptr + tl.program_id(0)) == 0:
            return
    classes, class_columns = sizes.classes, sizes.class_columns
    y, x, inside = pixels_of_tile(sizes.height, sizes.width, TILE)
    label = tl.zeros([PIXELS], tl.int32)
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    second = tl.full([PIXELS], float("-inf"), tl.float32)
    for start in range(0, class_columns, BLOCK.classes):
        k = start + tl.arange(0, BLOCK.classes)
        found = scores_of_tile(
            logits_ptr, parts_ptr, description_ptr, y, x, k, sizes, VARIANT, TILE, BLOCK, CHUNK
        )
        if VARIANT.scores:
            plane = tl.full([], sizes.height, tl.int64) * sizes.width
            offset = (y.to(tl.int64) * sizes.width + x)[:, None] + (k * plane)[None, :]
            tl.store(scores_ptr + offset, found, mask=inside[:, None] & (k < classes)[None, :])
        found = tl.where((k < classes)[None, :], found, float("-inf"))
        largest = tl.max(found, 1)
        # The first one of equals wins.
        index = tl.min(tl.where(found == largest[:, None], k[None, :], class_columns), 1)
        if not VARIANT.in_full:
            others = tl.where(k[None, :] == index[:, None], float("-inf"), found)
            second = tl.maximum(tl.maximum(second, tl.minimum(best, largest)), tl.max(others, 1))
        label = tl.where(largest > best, index, label)
        best = tl.maximum(best, largest)
    if not VARIANT.in_full:
        doubt = best * _DOUBT + 1e-6
        for view in range(sizes.views):
            doubt += tl.load(ignored_ptr + view)
        sure = tl.min((best - second > doubt).to(tl.int32))
        tl.store(unsure_ptr + tl.program_id(0), 1 - sure)
    tl.store(labels_ptr + y.to(tl.int64) * sizes.width + x, label.to(tl.int64), mask=inside)


@triton.jit
def keep_kernel(
    scores_ptr, order_ptr, weights_ptr, counts_ptr, kept_ptr, queries, BLOCK_Q: tl.constexpr
):
    """Put the kept queries first: `order` and `weights [columns]`, −1 and 0 behind them.

    How many are `kept [1]`; zeros into `counts [Q, 3]`.
    """
    query = tl.program_id(0)
    before = tl.zeros([BLOCK_Q], tl.int32)
    kept = tl.zeros([BLOCK_Q], tl.int32)
    for start in range(0, queries, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        is_kept = (tl.load(scores_ptr + q, mask=q < queries, other=-1.0) >= 0).to(tl.int32)
        kept += is_kept
        before += tl.where(q < query, is_kept, 0)
    all_kept = tl.sum(kept)
    score = tl.load(scores_ptr + query, mask=query < queries, other=-1.0)
    if score >= 0:
        index = tl.sum(before)
        tl.store(order_ptr + index, query)
        tl.store(weights_ptr + index, score)
    if query >= all_kept:
        tl.store(order_ptr + query, -1)
        tl.store(weights_ptr + query, 0.0)
    if query == 0:
        tl.store(kept_ptr, all_kept)
    zero = tl.zeros([], tl.int64)
    tl.store(counts_ptr + query * 3, zero, mask=query < queries)
    tl.store(counts_ptr + query * 3 + 1, zero, mask=query < queries)
    tl.store(counts_ptr + query * 3 + 2, zero, mask=query < queries)


@triton.jit
def owners_kernel(
    logits_ptr,
    order_ptr,
    weights_ptr,
    kept_ptr,
    owners_ptr,
    counts_ptr,
    sizes,
    CONFIDENT_ONLY: tl.constexpr,
    RESIZED: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`owners [H, W]` of a tile of pixels; what it has of each query is added to `counts [Q, 3]`.

    Sums of integers are the same in any order.
    """
    PIXELS: tl.constexpr = TILE.height * TILE.width
    vertical = MaskAxis(sizes.mask_height, sizes.input_height, sizes.image_height, sizes.height)
    horizontal = MaskAxis(sizes.mask_width, sizes.input_width, sizes.image_width, sizes.width)
    y, x, inside = pixels_of_tile(sizes.height, sizes.width, TILE)
    kept = tl.load(kept_ptr)

    best = tl.full([PIXELS], -1.0, tl.float32)
    owner = tl.full([PIXELS], -1, tl.int32)
    sure = tl.zeros([PIXELS], tl.int32)
    for start in range(0, kept, CHUNK):
        index = tl.arange(0, CHUNK)
        q = start + index
        values = mask_values(
            logits_ptr, sizes.columns, q, y, x, vertical, horizontal, RESIZED, RESIZE_LOGITS=True
        )
        confident = inside[:, None] & (q < kept)[None, :] & (values >= 0.5)
        pixels = tl.sum(confident.to(tl.int32), 0)
        query = tl.load(order_ptr + q)
        tl.atomic_add(counts_ptr + query * 3 + 1, pixels.to(tl.int64), mask=pixels > 0)

        # What is not a number owns nothing.
        possible = (q < kept)[None, :] & (values == values)
        weighted = tl.where(possible, tl.load(weights_ptr + q)[None, :] * values, -1.0)
        largest, largest_at = tl.max(weighted, 1, return_indices=True)
        value = tl.sum(tl.where(index[None, :] == largest_at[:, None], values, 0.0), 1)
        # The first one of equals wins.
        owner = tl.where(largest > best, start + largest_at, owner)
        sure = tl.where(largest > best, (value >= 0.5).to(tl.int32), sure)
        best = tl.maximum(best, largest)

    for start in range(0, kept, CHUNK):
        q = start + tl.arange(0, CHUNK)
        owned = inside[:, None] & (owner[:, None] == q[None, :])
        shown = owned & (sure != 0)[:, None] if CONFIDENT_ONLY else owned
        query = tl.load(order_ptr + q)
        pixels = tl.sum(owned.to(tl.int32), 0)
        tl.atomic_add(counts_ptr + query * 3, pixels.to(tl.int64), mask=pixels > 0)
        pixels = tl.sum(shown.to(tl.int32), 0)
        tl.atomic_add(counts_ptr + query * 3 + 2, pixels.to(tl.int64), mask=pixels > 0)

    owner = tl.load(order_ptr + owner, mask=owner >= 0, other=-1)
    if CONFIDENT_ONLY:
        owner = tl.where(sure != 0, owner, -1)
    tl.store(owners_ptr + y.to(tl.int64) * sizes.width + x, owner, mask=inside)
