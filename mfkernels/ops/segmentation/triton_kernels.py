"""The semantic label map of one image, streamed over tiles of the result.

A program has a tile of pixels. It interpolates the logits of the queries, applies the sigmoid, and
multiplies the results with the class probabilities on tensor cores, one block of classes at a time,
with the precision of float32. Neither masks nor scores of the size of the result are stored.

Most tiles do not need that. The sigmoids of all their pixels lie between the smallest and the
largest one of the mask pixels that they are interpolated from, which gives bounds for all scores.
If the lower bound of one class exceeds the upper bounds of all others, that class is the label of
the whole tile: the tile is certain.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.segmentation.triton_patch import (
    SCALE,
    before,
    pixels_of_tile,
    scaled_sigmoid,
    source_position,
    tile_values,
)
from mfkernels.triton.arguments import unspecialized
from mfkernels.triton.math import MINUS_LOG2_E, if_also, plain

# The relative and absolute error of bounds. Rounding to half precision has a relative error of at
# most 2^-11 for each factor; the rest allows for the rounding of sums and for denormal numbers.
_TOLERANCE, _MIN_TOLERANCE = tl.constexpr(0.0012), tl.constexpr(1e-6)
_LOGIT_ROUNDING = tl.constexpr(0.0005)
"""The relative rounding error of logits in half precision."""
FIELDS = tl.constexpr(14)


class View(NamedTuple):
    """A view: the location of its part of the workspaces, its sizes, and whether it is flipped.

    Its logits begin at element 16 · `first_block`, with `columns` logits (queries and padding) per
    mask pixel, each in one or two parts; its probabilities begin at row `first_row`. `mask_step_*`
    is the distance of neighbouring input pixels in mask pixels, `image_step_*` that of neighbouring
    pixels of the result in pixels of the image.
    """

    first_block: int
    first_row: int
    columns: int
    mask_height: int
    mask_width: int
    input_height: int
    input_width: int
    image_height: int
    image_width: int
    flipped: int
    mask_step_y: float
    mask_step_x: float
    image_step_y: float
    image_step_x: float

    def as_argument(self) -> View:
        """Return the argument of kernels, which decode it with `plain_view`."""
        varying = {name: unspecialized(getattr(self, name)) for name in _VARYING}
        return self._replace(**varying)


_VARYING = (
    *("first_block", "mask_height", "mask_width", "input_height", "input_width"),
    *("image_height", "image_width", "flipped"),
)
"""Fields that vary from image to image, for whose values kernels must not be specialised."""


class ProbabilitySizes(NamedTuple):
    queries: int
    classes: int
    stride: int
    """Elements from one query to the next."""
    rows: int
    """The number of queries of all views, with padding."""
    class_columns: int
    """The number of classes, rounded up to whole blocks."""


class SemanticSizes(NamedTuple):
    views: int
    classes: int
    rows: int
    """The number of queries of all views, with padding."""
    class_columns: int
    height: int
    width: int

    def as_argument(self) -> SemanticSizes:
        """Return the argument of kernels, which decode it with `plain_sizes`."""
        return self._replace(height=unspecialized(self.height))


class TilesBlock(NamedTuple):
    """Block sizes of the kernels that compute bounds."""

    tiles: int
    queries: int
    classes: int


@triton.jit
def plain_view(view):
    return View(
        plain(view.first_block),
        view.first_row,
        view.columns,
        plain(view.mask_height),
        plain(view.mask_width),
        plain(view.input_height),
        plain(view.input_width),
        plain(view.image_height),
        plain(view.image_width),
        plain(view.flipped),
        view.mask_step_y,
        view.mask_step_x,
        view.image_step_y,
        view.image_step_x,
    )


@triton.jit
def plain_sizes(sizes):
    return SemanticSizes(
        sizes.views,
        sizes.classes,
        sizes.rows,
        sizes.class_columns,
        plain(sizes.height),
        sizes.width,
    )


@triton.jit
def store_view(description_ptr, view):
    for index in tl.static_range(10):
        tl.store(description_ptr + index, view[index])
    for index in tl.static_range(10, 14):
        tl.store(
            description_ptr + index, tl.cast(view[index], tl.float32).to(tl.int32, bitcast=True)
        )


@triton.jit
def load_int(ptr):
    return tl.load(ptr).to(tl.int32)


@triton.jit
def load_float(ptr):
    return tl.load(ptr).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def load_view(description_ptr):
    return View(
        tl.load(description_ptr),
        load_int(description_ptr + 1),
        # Columns are whole blocks of 16, which the compiler cannot know.
        tl.multiple_of(load_int(description_ptr + 2), 16),
        load_int(description_ptr + 3),
        load_int(description_ptr + 4),
        load_int(description_ptr + 5),
        load_int(description_ptr + 6),
        load_int(description_ptr + 7),
        load_int(description_ptr + 8),
        load_int(description_ptr + 9),
        load_float(description_ptr + 10),
        load_float(description_ptr + 11),
        load_float(description_ptr + 12),
        load_float(description_ptr + 13),
    )


@triton.jit
def part_offset(start, row, k, rows, SIZE: tl.constexpr):
    """The offset in `parts` of the leading part of the probability of class `start + k`.

    `parts` has `[2, rows, SIZE]` for each block of SIZE classes: leading parts, trailing parts.
    """
    return tl.cast(start, tl.int64) * (2 * rows) + row * SIZE + k


@triton.jit
def prepare_kernel(probability_ptr, parts_ptr, description_ptr, sizes, view, SIZE: tl.constexpr):
    """Split a view's probabilities, times SCALE, into leading and trailing `parts` in float16.

    Also stores the view in `description [FIELDS]`. One program per query.
    """
    view = plain_view(view)
    query = tl.program_id(0)
    if query == 0:
        store_view(description_ptr, view)
    row_ptr = probability_ptr + query.to(tl.int64) * sizes.stride
    k = tl.arange(0, SIZE)
    for start in range(0, sizes.class_columns, SIZE):
        is_class = start + k < sizes.classes
        p = tl.load(row_ptr + start + k, mask=if_also(is_class, query < sizes.queries), other=0.0)
        # Padding columns get scores that are never the best.
        p = tl.where(is_class, p * SCALE, -60000.0)
        leading = p.to(tl.float16)
        part_ptr = parts_ptr + part_offset(start, view.first_row + query, k, sizes.rows, SIZE)
        tl.store(part_ptr, leading)
        tl.store(part_ptr + sizes.rows * SIZE, (p - leading.to(tl.float32)).to(tl.float16))


@triton.jit
def cells_between(first, last, mask, mask_step, image, image_step, RESIZED: tl.constexpr):
    """The first and last mask pixel on an axis that pixels `first` to `last` of the result need."""
    if RESIZED:
        first = tl.minimum(source_position(first, image_step, image).to(tl.int32), image - 1)
        last = tl.minimum(source_position(last, image_step, image).to(tl.int32) + 1, image - 1)
    first = source_position(first, mask_step, mask).to(tl.int32)
    return first, tl.minimum(source_position(last, mask_step, mask).to(tl.int32) + 1, mask - 1)


@triton.jit
def cells_of_tiles(tile, view, sizes, RESIZED: tl.constexpr, TILE: tl.constexpr):
    """The first and last row and the first and last column of the mask that each tile needs."""
    across = tl.cdiv(sizes.width + TILE.left, TILE.width)
    y = (tile // across) * TILE.height - TILE.up
    x = (tile % across) * TILE.width - TILE.left
    bottom = tl.minimum(y + (TILE.height - 1), sizes.height - 1)
    right = tl.minimum(x + (TILE.width - 1), sizes.width - 1)
    y, x = tl.maximum(y, 0), tl.maximum(x, 0)
    flipped = view.flipped != 0
    left = tl.where(flipped, sizes.width - 1 - right, x)
    right = tl.where(flipped, sizes.width - 1 - x, right)
    top, bottom = cells_between(
        y, bottom, view.mask_height, view.mask_step_y, view.image_height, view.image_step_y, RESIZED
    )
    left, right = cells_between(
        left, right, view.mask_width, view.mask_step_x, view.image_width, view.image_step_x, RESIZED
    )
    return top, bottom, left, right


@triton.jit(do_not_specialize=["tiles"])
def extremes_kernel(
    logits_ptr,
    extremes_ptr,
    view,
    sizes,
    tiles,
    RESIZED: tl.constexpr,
    IN_PARTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`extremes [2, tiles, rows]`: the smallest and the largest sigmoid of each query in each tile.

    They are multiplied by SCALE. One launch per view.
    """
    TILES: tl.constexpr = BLOCK.tiles
    QUERIES: tl.constexpr = BLOCK.queries
    view, sizes = plain_view(view), plain_sizes(sizes)
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    q = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    # Tiles beyond the last one read the last one, and are not stored.
    tile_read = tl.minimum(tile, tiles - 1)
    top, bottom, left, right = cells_of_tiles(tile_read, view, sizes, RESIZED, TILE)
    is_query = (q < view.columns)[None, :] & (tile >= 0)[:, None]
    DTYPE: tl.constexpr = logits_ptr.dtype.element_ty
    low = tl.full([TILES, QUERIES], float("inf"), DTYPE)
    high = tl.full([TILES, QUERIES], float("-inf"), DTYPE)
    stride = view.columns * (2 if IN_PARTS else 1)
    for row in range(tl.max(bottom - top) + 1):
        y = tl.minimum(top + row, bottom)
        for step in range(tl.max(right - left) + 1):
            cell = y * view.mask_width + tl.minimum(left + step, right)
            cell_ptr = logits_ptr + (cell.to(tl.int64) * stride)[:, None]
            x = tl.load(cell_ptr + q[None, :], mask=is_query, other=0.0)
            low, high = tl.minimum(low, x), tl.maximum(high, x)
    low, high = low.to(tl.float32), high.to(tl.float32)
    if not IN_PARTS:
        low, high = high * MINUS_LOG2_E, low * MINUS_LOG2_E
    # Logits are stored times −log2(e): the largest one gives the smallest sigmoid.
    least = scaled_sigmoid(high + tl.abs(high) * _LOGIT_ROUNDING)
    most = scaled_sigmoid(low - tl.abs(low) * _LOGIT_ROUNDING)
    tile_ptr = extremes_ptr + (tile.to(tl.int64) * sizes.rows + view.first_row)[:, None]
    mask = (tile < tiles)[:, None] & is_query
    tl.store(tile_ptr + q[None, :], least.to(tl.float16), mask=mask)
    all_tiles = tl.cast(tiles, tl.int64) * sizes.rows
    tl.store(tile_ptr + all_tiles + q[None, :], most.to(tl.float16), mask=mask)


@triton.jit
def bounds_of_scores(extremes_ptr, parts_ptr, tile, start, tiles, sizes, BLOCK: tl.constexpr):
    """Lower and upper bounds `[tiles, classes]` of scores of a block of classes, times SCALE²."""
    SIZE: tl.constexpr = BLOCK.classes
    QUERIES: tl.constexpr = BLOCK.queries
    least = tl.zeros([tile.shape[0], SIZE], tl.float32)
    most = tl.zeros([tile.shape[0], SIZE], tl.float32)
    k = tl.arange(0, SIZE)
    tile_ptr = extremes_ptr + tile.to(tl.int64)[:, None] * sizes.rows
    for first in range(0, sizes.rows, QUERIES):
        row = first + tl.arange(0, QUERIES)
        mask = (row < sizes.rows)[:, None] & (k >= 0)[None, :]
        offset = part_offset(start, row[:, None], k[None, :], sizes.rows, SIZE)
        part = tl.load(parts_ptr + offset, mask=mask, other=0.0)
        mask = (tile < tiles)[:, None] & (row < sizes.rows)[None, :]
        low = tl.load(tile_ptr + row[None, :], mask=mask, other=0.0)
        all_tiles = tl.cast(tiles, tl.int64) * sizes.rows
        high = tl.load(tile_ptr + all_tiles + row[None, :], mask=mask, other=0.0)
        least = tl.dot(low, part, least)
        most = tl.dot(high, part, most)
    return least, most


@triton.jit(do_not_specialize=["tiles"])
def certain_kernel(extremes_ptr, parts_ptr, certain_ptr, tiles, sizes, BLOCK: tl.constexpr):
    """`certain [tiles]`: the label of all pixels of a tile, or −1 if the tile is not certain."""
    TILES: tl.constexpr = BLOCK.tiles
    SIZE: tl.constexpr = BLOCK.classes
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    k = tl.arange(0, SIZE)[None, :]
    label = tl.zeros([TILES], tl.int32)
    least_of_best = tl.full([TILES], float("-inf"), tl.float32)
    best = tl.full([TILES], float("-inf"), tl.float32)
    second = tl.full([TILES], float("-inf"), tl.float32)
    for start in range(0, sizes.class_columns, SIZE):
        least, most = bounds_of_scores(extremes_ptr, parts_ptr, tile, start, tiles, sizes, BLOCK)
        largest = tl.max(most, 1)
        index = tl.min(tl.where(most == largest[:, None], k, SIZE), 1)
        others = tl.max(tl.where(k == index[:, None], float("-inf"), most), 1)
        second = tl.maximum(tl.maximum(second, others), tl.minimum(best, largest))
        least = tl.max(tl.where(k == index[:, None], least, float("-inf")), 1)
        least_of_best = tl.where(largest > best, least, least_of_best)
        label = tl.where(largest > best, start + index, label)
        best = tl.maximum(best, largest)
    tolerance = 2.0 * best * _TOLERANCE + _MIN_TOLERANCE * (SCALE * SCALE)
    # The comparison is False if a bound is NaN.
    certain = (least_of_best - second > tolerance) & (label < sizes.classes)
    tl.store(certain_ptr + tile, tl.where(certain, label, -1), mask=tile < tiles)


@triton.jit
def add_products(total, leading, trailing, parts_ptr, rows, PIECES: tl.constexpr):
    """Add the contributions of a chunk of queries to scores `[P, K]`.

    `parts_ptr` points to the row of the first of these queries.
    """
    SIZE: tl.constexpr = total.shape[1]
    k = tl.arange(0, SIZE)
    for piece in tl.static_range(len(PIECES)):
        q = before(PIECES, piece) + tl.arange(0, PIECES[piece])
        part_ptr = parts_ptr + (q[:, None] * SIZE + k[None, :])
        part = tl.load(part_ptr)
        total = tl.dot(leading[piece], part, total)
        total = tl.dot(trailing[piece], part, total)
        part = tl.load(part_ptr + rows * SIZE)
        total = tl.dot(leading[piece], part, total)
    return total


@triton.jit
def scores_of_views(
    total,
    logits_ptr,
    parts_ptr,
    description_ptr,
    sizes,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    PATCH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Add the contributions of all views and queries to scores `[P, K]` of a block of classes."""
    CHUNK: tl.constexpr = before(PIECES, len(PIECES))
    SIZE: tl.constexpr = total.shape[1]
    for index in range(sizes.views):
        view = load_view(description_ptr + index * FIELDS)
        view_logits_ptr = logits_ptr + view.first_block * 16
        for chunk in range(view.columns // CHUNK):
            first = chunk * CHUNK
            leading, trailing = tile_values(
                view_logits_ptr, view, view.columns, first, sizes, VARIANT, TILE, PATCH, PIECES
            )
            row_ptr = parts_ptr + (view.first_row + first) * SIZE
            total = add_products(total, leading, trailing, row_ptr, sizes.rows, PIECES)
    return total


@triton.jit
def store_scores(scores_ptr, found, start, sizes, TILE: tl.constexpr):
    """Store the scores `[P, K]` of a tile and a block of classes in `scores [K, H, W]`."""
    k = start + tl.arange(0, found.shape[1])
    y, x, inside = pixels_of_tile(sizes.height, sizes.width, TILE)
    plane = tl.full([], sizes.height, tl.int64) * sizes.width
    offset = (y.to(tl.int64) * sizes.width + x)[:, None] + (k * plane)[None, :]
    mask = inside[:, None] & (k < sizes.classes)[None, :]
    tl.store(scores_ptr + offset, found * (1.0 / (SCALE * SCALE)), mask=mask)


@triton.jit
def store_labels(labels_ptr, label, sizes, TILE: tl.constexpr):
    y, x, inside = pixels_of_tile(sizes.height, sizes.width, TILE)
    tl.store(labels_ptr + y.to(tl.int64) * sizes.width + x, label, mask=inside)


@triton.jit
def semantic_kernel(
    logits_ptr,
    parts_ptr,
    description_ptr,
    certain_ptr,
    labels_ptr,
    scores_ptr,
    sizes,
    view,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    PATCH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """`labels [H, W]` and `scores [K, H, W]` of one tile per program.

    `view` is used only if it is the only one (`VARIANT.at_once`); otherwise, the descriptions are.
    """
    SIZE: tl.constexpr = VARIANT.classes
    PIXELS: tl.constexpr = TILE.height * TILE.width
    ROWS: tl.constexpr = before(PIECES, len(PIECES))
    view, sizes = plain_view(view), plain_sizes(sizes)
    if not VARIANT.scores:
        known = tl.load(certain_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0))
        if known >= 0:
            store_labels(labels_ptr, known.to(tl.int64), sizes, TILE)
            return
    leading, trailing = (), ()
    if VARIANT.at_once:
        leading, trailing = tile_values(
            logits_ptr, view, ROWS, 0, sizes, VARIANT, TILE, PATCH, PIECES
        )
    label = tl.zeros([PIXELS], tl.int32)
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    for start in range(0, sizes.class_columns, SIZE):
        found = tl.zeros([PIXELS, SIZE], tl.float32)
        if VARIANT.at_once:
            block_ptr = parts_ptr + part_offset(start, 0, 0, ROWS, SIZE)
            found = add_products(found, leading, trailing, block_ptr, ROWS, PIECES)
        else:
            block_ptr = parts_ptr + part_offset(start, 0, 0, sizes.rows, SIZE)
            found = scores_of_views(
                found,
                logits_ptr,
                block_ptr,
                description_ptr,
                sizes,
                VARIANT,
                TILE,
                PATCH,
                PIECES,
            )
        if VARIANT.scores:
            store_scores(scores_ptr, found, start, sizes, TILE)
        largest = tl.max(found, 1)
        k = tl.arange(0, SIZE)[None, :]
        # Of equal scores, the first one wins.
        index = tl.min(tl.where(found == largest[:, None], k, SIZE), 1)
        label = tl.where(largest > best, start + index, label)
        best = tl.maximum(best, largest)
    # If all scores are NaN, a padding column is the best; return 0 then, as argmax does.
    label = tl.where(label < sizes.classes, label, 0)
    store_labels(labels_ptr, label.to(tl.int64), sizes, TILE)
