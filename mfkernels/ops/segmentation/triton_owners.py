"""The owner map of a panoptic result, streamed over tiles of the result."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.segmentation.triton_logits_by_pixel import mask_values
from mfkernels.ops.segmentation.triton_patch import Tile, pixels_of_tile
from mfkernels.triton.arguments import MaskAxis, unspecialized
from mfkernels.triton.math import plain

TILE = Tile(8, 8, 0, 0)


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

    def as_argument(self) -> OwnersSizes:
        """Return the kernel's argument; it decodes the sizes, except `width`, with `plain`."""
        columns, *sizes, width = self
        return OwnersSizes._make((columns, *map(unspecialized, sizes), width))


@triton.jit
def keep_kernel(
    scores_ptr, order_ptr, weights_ptr, counts_ptr, kept_ptr, queries, BLOCK_Q: tl.constexpr
):
    """Compact the kept queries: their indices in `order` and scores in `weights`, both `[columns]`.

    They are padded with −1 and 0. Also stores the number of kept queries in `kept [1]`, and zeros
    in `counts [Q, 3]`. One program per column.
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
    """`owners [H, W]` of one tile per program; its pixel counts are added to `counts [Q, 3]`.

    The additions are atomic, but deterministic, because they add integers.
    """
    PIXELS: tl.constexpr = TILE.height * TILE.width
    vertical = MaskAxis(
        plain(sizes.mask_height),
        plain(sizes.input_height),
        plain(sizes.image_height),
        plain(sizes.height),
    )
    horizontal = MaskAxis(
        plain(sizes.mask_width), plain(sizes.input_width), plain(sizes.image_width), sizes.width
    )
    y, x, inside = pixels_of_tile(vertical.result, sizes.width, TILE)
    kept = tl.load(kept_ptr)

    best = tl.full([PIXELS], -1.0, tl.float32)
    owner = tl.full([PIXELS], -1, tl.int32)
    is_confident = tl.zeros([PIXELS], tl.int32)
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

        weighted = tl.where((q < kept)[None, :], tl.load(weights_ptr + q)[None, :] * values, -1.0)
        largest, largest_at = tl.max(weighted, 1, return_indices=True)
        value = tl.sum(tl.where(index[None, :] == largest_at[:, None], values, 0.0), 1)
        # Of equal scores, the first query wins.
        owner = tl.where(largest > best, start + largest_at, owner)
        is_confident = tl.where(largest > best, (value >= 0.5).to(tl.int32), is_confident)
        best = tl.maximum(best, largest)

    for start in range(0, kept, CHUNK):
        q = start + tl.arange(0, CHUNK)
        owned = inside[:, None] & (owner[:, None] == q[None, :])
        shown = owned & (is_confident != 0)[:, None] if CONFIDENT_ONLY else owned
        query = tl.load(order_ptr + q)
        pixels = tl.sum(owned.to(tl.int32), 0)
        tl.atomic_add(counts_ptr + query * 3, pixels.to(tl.int64), mask=pixels > 0)
        pixels = tl.sum(shown.to(tl.int32), 0)
        tl.atomic_add(counts_ptr + query * 3 + 2, pixels.to(tl.int64), mask=pixels > 0)

    owner = tl.load(order_ptr + owner, mask=owner >= 0, other=-1)
    if CONFIDENT_ONLY:
        owner = tl.where(is_confident != 0, owner, -1)
    tl.store(owners_ptr + y.to(tl.int64) * sizes.width + x, owner, mask=inside)
