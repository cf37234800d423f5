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

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.device import if_also
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.queries import CHUNK, columns_of, logits_by_pixel, mask_values
from mfkernels.triton.tensors import check_floats

TILE_HEIGHT, TILE_WIDTH = 8, 8
IGNORED, NEGLIGIBLE = 0.1, 0.01
"""The most that the queries without part in the guess may add to a score: together, and each."""

FIELDS = tl.constexpr(11)
"""Numbers that describe a view: see `prepare_kernel`."""

_SCALE = tl.constexpr(1024.0)
# Half precision of both factors is off by at most 2^-11 each, relatively: best and second together
# by 2^-9 of the best; the rest is for the rounding of sums. The scale avoids denormal numbers.
_DOUBT = tl.constexpr(0.002)


@triton.jit
def pixels_of_tile(height, width, TILE_HEIGHT: tl.constexpr, TILE_WIDTH: tl.constexpr):
    """Row and column of each pixel of this program's tile, and whether it is inside.

    Pixels outside have the place of one that is inside.
    """
    across = tl.cdiv(width, TILE_WIDTH)
    p = tl.arange(0, TILE_HEIGHT * TILE_WIDTH)
    y = (tl.program_id(0) // across) * TILE_HEIGHT + p // TILE_WIDTH
    x = (tl.program_id(0) % across) * TILE_WIDTH + p % TILE_WIDTH
    inside = (y < height) & (x < width)
    return tl.minimum(y, height - 1), tl.minimum(x, width - 1), inside


@triton.jit
def bounds_kernel(probability, bounds, classes, step, BLOCK: tl.constexpr):
    """`bounds [Q]`: the most that a query can add to the score of any class."""
    query = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        p = tl.load(probability + query * step + k, mask=k < classes, other=0.0)
        largest = tl.maximum(largest, tl.where(p == p, p, float("inf")))
    tl.store(bounds + query, tl.max(largest))


@triton.jit
def prepare_kernel(
    probability,
    bounds,
    order,
    parts,
    description,
    ignored,
    queries,
    classes,
    step,
    all_columns,
    class_columns,
    most_ignored,
    negligible,
    first_chunk,
    first_row,
    chunks,
    height,
    width,
    input_height,
    input_width,
    image_height,
    image_width,
    flipped,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sort the queries of a view by what they can add, the largest first; describe the view.

    `order [columns]`: the queries, then −1. `parts [2, all columns, class_columns]`: leading and
    trailing part of their probabilities, times _SCALE. `description [FIELDS]`: the numbers
    `first_chunk` … `flipped`, and how many queries the guess uses. `ignored [1]`: what the others
    add at most. The place of the logits and their columns are counted in chunks.
    """
    query = tl.program_id(0)
    bound = tl.load(bounds + query, mask=query < queries, other=-1.0)
    rank = tl.zeros([BLOCK_Q], tl.int32)
    after = tl.zeros([BLOCK_Q], tl.float32)
    after_and_own = tl.zeros([BLOCK_Q], tl.float32)
    next_bounds = tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, queries, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        other = tl.load(bounds + q, mask=q < queries, other=-1.0)
        earlier = (other > bound) | ((other == bound) & (q < query))
        rank += ((q < queries) & earlier).to(tl.int32)
        follows = (q < queries) & ~earlier
        after += tl.where(follows & (q != query), other, 0.0)
        next_bounds = tl.maximum(next_bounds, tl.where(follows & (q != query), other, 0.0))
        after_and_own += tl.where(follows, other, 0.0)
    place = tl.where(query < queries, tl.sum(rank), query)
    rest, rest_and_own = tl.sum(after), tl.sum(after_and_own)
    tl.store(order + place, tl.where(query < queries, query, -1))

    # The last query of the guess is the one that is needed while the next one is not.
    needed = (rest_and_own > most_ignored) | (bound > negligible)
    next_needed = (rest > most_ignored) | (tl.max(next_bounds) > negligible)
    if needed & ~next_needed & (query < queries):
        tl.store(description + FIELDS - 1, place + 1)
        tl.store(ignored, rest)
    if ~needed & (place == 0):
        tl.store(description + FIELDS - 1, 0)
        tl.store(ignored, rest_and_own)
    if query == 0:
        tl.store(description, first_chunk)
        tl.store(description + 1, first_row)
        tl.store(description + 2, chunks)
        tl.store(description + 3, height)
        tl.store(description + 4, width)
        tl.store(description + 5, input_height)
        tl.store(description + 6, input_width)
        tl.store(description + 7, image_height)
        tl.store(description + 8, image_width)
        tl.store(description + 9, flipped)

    for start in range(0, class_columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        p = tl.load(
            probability + query.to(tl.int64) * step + k,
            mask=if_also(k < classes, query < queries),
            other=0.0,
        )
        part = (p * _SCALE).to(tl.float16)
        at = parts + (first_row + place).to(tl.int64) * class_columns + k
        tl.store(at, part, mask=k < class_columns)
        part = (p * _SCALE - part.to(tl.float32)).to(tl.float16)
        all_rows = tl.full([], all_columns, tl.int64)
        tl.store(at + all_rows * class_columns, part, mask=k < class_columns)


@triton.jit
def scores_of_tile(
    logits,
    parts,
    description,
    y,
    x,
    k,
    views,
    all_columns,
    class_columns,
    result_height,
    result_width,
    IN_FULL: tl.constexpr,
    RESIZED: tl.constexpr,
    RESIZE_LOGITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Scores `[P, K]` of some classes at some pixels, all views together; in full or guessed.

    STEP queries at a time, a divisor of CHUNK.
    """
    total = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
    for view in range(views):
        fields = description + view * FIELDS
        chunks = tl.load(fields + 2).to(tl.int32)
        used = chunks if IN_FULL else tl.cdiv(tl.load(fields + FIELDS - 1).to(tl.int32), CHUNK)
        view_logits = logits + tl.load(fields) * CHUNK
        row = tl.load(fields + 1).to(tl.int32)
        height, width = tl.load(fields + 3).to(tl.int32), tl.load(fields + 4).to(tl.int32)
        input_height = tl.load(fields + 5).to(tl.int32)
        input_width = tl.load(fields + 6).to(tl.int32)
        image_height = tl.load(fields + 7).to(tl.int32)
        image_width = tl.load(fields + 8).to(tl.int32)
        column = tl.where(tl.load(fields + 9) != 0, result_width - 1 - x, x)
        for step in range(used * (CHUNK // STEP)):
            q = step * STEP + tl.arange(0, STEP)
            values = mask_values(
                view_logits,
                chunks * CHUNK,
                q,
                y,
                column,
                height,
                width,
                input_height,
                input_width,
                image_height,
                image_width,
                result_height,
                result_width,
                RESIZED,
                RESIZE_LOGITS,
            )
            values *= _SCALE
            large = values.to(tl.float16)
            small = (values - large.to(tl.float32)).to(tl.float16)
            # Large · large alone, or with the two products that matter next.
            for product in range(3 if IN_FULL else 1):
                first_row = row + tl.where(product == 2, all_columns, 0)
                at = ((first_row + q) * class_columns)[:, None] + k[None, :]
                some = tl.where(product == 1, small, large)
                total = tl.dot(some, tl.load(parts + at), total)
    return total * (1.0 / (_SCALE * _SCALE))


@triton.jit
def semantic_kernel(
    logits,
    parts,
    description,
    ignored,
    unsure,
    labels,
    scores,
    views,
    classes,
    all_columns,
    class_columns,
    result_height,
    result_width,
    IN_FULL: tl.constexpr,
    SCORES: tl.constexpr,
    RESIZED: tl.constexpr,
    RESIZE_LOGITS: tl.constexpr,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
):
    """`labels [H, W]` of a tile of pixels, and `scores [K, H, W]` if they are asked for.

    `unsure [tiles]`: written by the guess; the tiles that are computed IN_FULL.
    """
    BLOCK_P: tl.constexpr = TILE_HEIGHT * TILE_WIDTH
    if IN_FULL and not SCORES:  # noqa: SIM102 (`and` would load in either case)
        if tl.load(unsure + tl.program_id(0)) == 0:
            return
    y, x, inside = pixels_of_tile(result_height, result_width, TILE_HEIGHT, TILE_WIDTH)
    label = tl.zeros([BLOCK_P], tl.int32)
    best = tl.full([BLOCK_P], float("-inf"), tl.float32)
    second = tl.full([BLOCK_P], float("-inf"), tl.float32)
    for start in range(0, class_columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        found = scores_of_tile(
            logits,
            parts,
            description,
            y,
            x,
            k,
            views,
            all_columns,
            class_columns,
            result_height,
            result_width,
            IN_FULL,
            RESIZED,
            RESIZE_LOGITS,
            BLOCK_P,
            BLOCK_K,
            CHUNK,
            STEP,
        )
        if SCORES:
            plane = tl.full([], result_height, tl.int64) * result_width
            at = (y.to(tl.int64) * result_width + x)[:, None] + (k * plane)[None, :]
            tl.store(scores + at, found, mask=inside[:, None] & (k < classes)[None, :])
        found = tl.where((k < classes)[None, :], found, float("-inf"))
        most = tl.max(found, 1)
        # The first one of equals wins.
        index = tl.min(tl.where(found == most[:, None], k[None, :], class_columns), 1)
        if not IN_FULL:
            others = tl.where(k[None, :] == index[:, None], float("-inf"), found)
            second = tl.maximum(tl.maximum(second, tl.minimum(best, most)), tl.max(others, 1))
        label = tl.where(most > best, index, label)
        best = tl.maximum(best, most)
    if not IN_FULL:
        doubt = best * _DOUBT + 1e-6
        for view in range(views):
            doubt += tl.load(ignored + view)
        sure = tl.min((best - second > doubt).to(tl.int32))
        tl.store(unsure + tl.program_id(0), 1 - sure)
    tl.store(labels + y.to(tl.int64) * result_width + x, label.to(tl.int64), mask=inside)


@triton.jit
def keep_kernel(scores, order, weights, counts, number, queries, BLOCK_Q: tl.constexpr):
    """Put the kept queries first: `order` and `weights [columns]`, −1 and 0 behind them.

    Their `number [1]`; zeros into `counts [Q, 3]`.
    """
    query = tl.program_id(0)
    before = tl.zeros([BLOCK_Q], tl.int32)
    kept = tl.zeros([BLOCK_Q], tl.int32)
    for start in range(0, queries, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        is_kept = (tl.load(scores + q, mask=q < queries, other=-1.0) >= 0).to(tl.int32)
        kept += is_kept
        before += tl.where(q < query, is_kept, 0)
    all_kept = tl.sum(kept)
    score = tl.load(scores + query, mask=query < queries, other=-1.0)
    if score >= 0:
        place = tl.sum(before)
        tl.store(order + place, query)
        tl.store(weights + place, score)
    if query >= all_kept:
        tl.store(order + query, -1)
        tl.store(weights + query, 0.0)
    if query == 0:
        tl.store(number, all_kept)
    zero = tl.zeros([], tl.int64)
    tl.store(counts + query * 3, zero, mask=query < queries)
    tl.store(counts + query * 3 + 1, zero, mask=query < queries)
    tl.store(counts + query * 3 + 2, zero, mask=query < queries)


@triton.jit
def owners_kernel(
    logits,
    order,
    weights,
    number,
    owners,
    counts,
    columns,
    height,
    width,
    input_height,
    input_width,
    image_height,
    image_width,
    result_height,
    result_width,
    CONFIDENT_ONLY: tl.constexpr,
    RESIZED: tl.constexpr,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """`owners [H, W]` of a tile of pixels; what it has of each query is added to `counts [Q, 3]`.

    Sums of integers are the same in any order.
    """
    BLOCK_P: tl.constexpr = TILE_HEIGHT * TILE_WIDTH
    y, x, inside = pixels_of_tile(result_height, result_width, TILE_HEIGHT, TILE_WIDTH)
    kept = tl.load(number)

    best = tl.full([BLOCK_P], -1.0, tl.float32)
    owner = tl.full([BLOCK_P], -1, tl.int32)
    sure = tl.zeros([BLOCK_P], tl.int32)
    for start in range(0, kept, CHUNK):
        index = tl.arange(0, CHUNK)
        q = start + index
        values = mask_values(
            logits,
            columns,
            q,
            y,
            x,
            height,
            width,
            input_height,
            input_width,
            image_height,
            image_width,
            result_height,
            result_width,
            RESIZED,
            True,
        )
        confident = inside[:, None] & (q < kept)[None, :] & (values >= 0.5)
        pixels = tl.sum(confident.to(tl.int32), 0)
        query = tl.load(order + q)
        tl.atomic_add(counts + query * 3 + 1, pixels.to(tl.int64), mask=pixels > 0)

        # What is not a number owns nothing.
        possible = (q < kept)[None, :] & (values == values)
        weighted = tl.where(possible, tl.load(weights + q)[None, :] * values, -1.0)
        most, place = tl.max(weighted, 1, return_indices=True)
        value = tl.sum(tl.where(index[None, :] == place[:, None], values, 0.0), 1)
        # The first one of equals wins.
        owner = tl.where(most > best, start + place, owner)
        sure = tl.where(most > best, (value >= 0.5).to(tl.int32), sure)
        best = tl.maximum(best, most)

    for start in range(0, kept, CHUNK):
        q = start + tl.arange(0, CHUNK)
        owned = inside[:, None] & (owner[:, None] == q[None, :])
        painted = owned & (sure != 0)[:, None] if CONFIDENT_ONLY else owned
        query = tl.load(order + q)
        pixels = tl.sum(owned.to(tl.int32), 0)
        tl.atomic_add(counts + query * 3, pixels.to(tl.int64), mask=pixels > 0)
        pixels = tl.sum(painted.to(tl.int32), 0)
        tl.atomic_add(counts + query * 3 + 2, pixels.to(tl.int64), mask=pixels > 0)

    owner = tl.load(order + owner, mask=owner >= 0, other=-1)
    if CONFIDENT_ONLY:
        owner = tl.where(sure != 0, owner, -1)
    tl.store(owners + y.to(tl.int64) * result_width + x, owner, mask=inside)


def semantic_segmentation(
    probability: list[Tensor],
    mask_embed: list[Tensor],
    pixel_features: list[Tensor],
    padded_heights: list[int],
    padded_widths: list[int],
    image_heights: list[int],
    image_widths: list[int],
    flipped: list[bool],
    height: int,
    width: int,
    resize_logits: bool,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::semantic_segmentation`; see csrc/torch_library.cpp."""
    check_floats("semantic_segmentation", *probability, *mask_embed, *pixel_features)
    views = len(probability)
    first = probability[0]
    classes = first.shape[1]
    resized = any(h != height for h in image_heights) or any(w != width for w in image_widths)
    # As many classes as the registers hold without spilling; tests/test_triton_compilation.py.
    most_classes = 256 if not return_scores else 64 if resized else 128
    block_k = min(power_of_2(classes, 16), most_classes)
    class_columns = cdiv(classes, block_k) * block_k
    labels = first.new_empty((height, width), dtype=torch.int64)
    scores = first.new_empty(
        (classes, height, width) if return_scores else (0,), dtype=torch.float32
    )
    columns = [columns_of(p.shape[0]) for p in probability]
    sizes = [x.shape[-2:] for x in (pixel_features or mask_embed)]
    logits = first.new_empty(
        sum(h * w * c for (h, w), c in zip(sizes, columns, strict=True)), dtype=torch.float32
    )
    parts = first.new_empty((2, sum(columns), class_columns), dtype=torch.float16)
    description = first.new_empty((views, FIELDS.value), dtype=torch.int64)
    ignored = first.new_empty(views, dtype=torch.float32)
    row, place = 0, 0
    for view, (p, embed) in enumerate(zip(probability, mask_embed, strict=True)):
        (low_height, low_width), view_columns = sizes[view], columns[view]
        bounds = p.new_empty(p.shape[0], dtype=torch.float32)
        order = p.new_empty(view_columns, dtype=torch.int32)
        p = p.float() if p.stride(1) == 1 else p.float().contiguous()
        launcher.launch(
            bounds_kernel,
            (p.shape[0],),
            p,
            bounds,
            classes,
            p.stride(0),
            BLOCK=min(power_of_2(classes), 1024),
            num_warps=1,
        )
        launcher.launch(
            prepare_kernel,
            (view_columns,),
            p,
            bounds,
            order,
            parts,
            description[view],
            ignored[view:],
            p.shape[0],
            classes,
            p.stride(0),
            sum(columns),
            class_columns,
            IGNORED / views,
            NEGLIGIBLE / views,
            place // CHUNK,
            row,
            view_columns // CHUNK,
            low_height,
            low_width,
            padded_heights[view],
            padded_widths[view],
            image_heights[view],
            image_widths[view],
            int(flipped[view]),
            BLOCK_Q=128,
            BLOCK_K=block_k,
            num_warps=4,
        )
        end = place + low_height * low_width * view_columns
        logits_by_pixel(
            embed,
            pixel_features[view] if pixel_features else None,
            order,
            logits[place:end].view(low_height * low_width, view_columns),
        )
        row, place = row + view_columns, end
    # 16 warps hide more of the latency, where their registers suffice.
    warps = 16 if block_k >= 128 and not resized else 8
    tiles = cdiv(height, TILE_HEIGHT) * cdiv(width, TILE_WIDTH)
    unsure = first.new_empty(tiles, dtype=torch.uint8)
    for in_full in (True,) if return_scores else (False, True):
        launcher.launch(
            semantic_kernel,
            (tiles,),
            logits,
            parts,
            description,
            ignored,
            unsure,
            labels,
            scores,
            views,
            classes,
            sum(columns),
            class_columns,
            height,
            width,
            IN_FULL=in_full,
            SCORES=return_scores,
            RESIZED=resized,
            RESIZE_LOGITS=resize_logits,
            TILE_HEIGHT=TILE_HEIGHT,
            TILE_WIDTH=TILE_WIDTH,
            BLOCK_K=block_k,
            CHUNK=CHUNK,
            # Three products with 128 registers a thread: fewer queries at a time do not spill.
            STEP=CHUNK // 2 if in_full and warps == 16 else CHUNK,
            num_warps=warps,
            num_stages=2,
            maxnreg=128 if warps == 16 else 255,
        )
    return labels, scores


def panoptic_owners(
    scores: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    padded_height: int,
    padded_width: int,
    image_height: int,
    image_width: int,
    height: int,
    width: int,
    confident_only: bool,
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::panoptic_owners`; see csrc/torch_library.cpp."""
    check_floats("panoptic_owners", scores, mask_embed, pixel_features)
    queries, columns = scores.shape[0], columns_of(scores.shape[0])
    low_height, low_width = (mask_embed if pixel_features is None else pixel_features).shape[-2:]
    owners = scores.new_empty((height, width), dtype=torch.int32)
    counts = scores.new_empty((queries, 3), dtype=torch.int64)
    order = scores.new_empty(columns, dtype=torch.int32)
    weights = scores.new_empty(columns, dtype=torch.float32)
    number = scores.new_empty(1, dtype=torch.int32)
    logits = scores.new_empty((low_height * low_width, columns), dtype=torch.float32)
    launcher.launch(
        keep_kernel,
        (columns,),
        scores.contiguous(),
        order,
        weights,
        counts,
        number,
        queries,
        BLOCK_Q=128,
        num_warps=1,
    )
    logits_by_pixel(mask_embed, pixel_features, order, logits)
    resized = (image_height, image_width) != (height, width)
    launcher.launch(
        owners_kernel,
        (cdiv(height, TILE_HEIGHT) * cdiv(width, TILE_WIDTH),),
        logits,
        order,
        weights,
        number,
        owners,
        counts,
        columns,
        low_height,
        low_width,
        padded_height,
        padded_width,
        image_height,
        image_width,
        height,
        width,
        CONFIDENT_ONLY=confident_only,
        RESIZED=resized,
        TILE_HEIGHT=TILE_HEIGHT,
        TILE_WIDTH=TILE_WIDTH,
        # Of programs twice this size, some compilers of Triton's range spill a little.
        CHUNK=CHUNK // 2 if resized else CHUNK,
        num_warps=4 if resized else 8,
        num_stages=1,
    )
    return owners, counts
