"""The second kernel of the matching cost: it adds up partial sums and computes the costs.

The first kernel has stored Σ f₋ over all pixels, and Σ (f₊ − f₋) over those of each segment. Their
sum is the focal loss, but if Σ f₋ is large, it cancels: f₋ of a correctly predicted pixel with a
large logit is in both terms, and its rounding error exceeds the losses of other pixels. In this
case, a program computes the losses of its rows again and sums them separately inside and outside of
segments.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.matching_cost.triton_kernels import (
    add_sums,
    focal_maps,
    load_embed,
    load_segments,
    logits_tile,
    members_of,
)
from mfkernels.ops.matching_cost.triton_parts import PIXELS_OF_A_SCALE
from mfkernels.triton.arguments import unspecialized
from mfkernels.triton.math import MINUS_LOG2_E, plain, row_offset, segments_of_image

LARGE = tl.constexpr(8.0)
"""The mean of f₋ above which differences are too inaccurate: the error of a focal cost is about
2⁻²² of it. It takes logits of about 10 all over the image to get there."""


class CostSizes(NamedTuple):
    splits: int
    rows: int
    queries: int
    classes: int
    max_count: int
    pixels: int

    def as_argument(self) -> CostSizes:
        """Return the kernel's argument; it decodes `splits` and `max_count` with `plain`."""
        return self._replace(
            splits=unspecialized(self.splits), max_count=unspecialized(self.max_count)
        )


class CostWeights(NamedTuple):
    """The weights of the three terms of the cost."""

    class_weight: float
    mask_weight: float
    dice_weight: float


class CostBlock(NamedTuple):
    """Block sizes of the second kernel."""

    rows: int
    segments: int
    classes: int
    images: int


@triton.jit
def sums_of_splits(partial, image, row, t, count, sizes, BLOCK: tl.constexpr):
    """Add up the partial sums of all splits (see `PartialSums`).

    Returns Σ (f₊ − f₋) and Σ s over the pixels of each segment, `[rows, segments]`; Σ f₋ and Σ s
    over all pixels, `[rows]`; and the areas of segments, `[segments]`.
    """
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_T: tl.constexpr = BLOCK.segments
    images, max_count = tl.num_programs(2), plain(sizes.max_count)
    is_row, is_segment = row < sizes.rows, t < count
    inside = is_row[:, None] & is_segment[None, :]
    gain = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    sigmoid = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
    all_negative = tl.zeros([BLOCK_R], tl.float32)
    all_sigmoid = tl.zeros([BLOCK_R], tl.float32)
    area = tl.zeros([BLOCK_T], tl.float32)
    for split in range(plain(sizes.splits)):
        row_index = (image + tl.full([BLOCK_R], images, tl.int64) * split) * sizes.rows + row
        sums_ptr = partial.sums_ptr + row_index * (2 * max_count + 2)
        gain += tl.load(sums_ptr[:, None] + t[None, :], mask=inside, other=0.0)
        sigmoid += tl.load(sums_ptr[:, None] + max_count + 1 + t[None, :], mask=inside, other=0.0)
        all_negative += tl.load(sums_ptr + max_count, mask=is_row, other=0.0)
        all_sigmoid += tl.load(sums_ptr + 2 * max_count + 1, mask=is_row, other=0.0)
        image_index = image + tl.full([BLOCK_T], images, tl.int64) * split
        area += tl.load(partial.areas_ptr + image_index * max_count + t, mask=is_segment, other=0.0)
    return gain, sigmoid, all_negative, all_sigmoid, area


@triton.jit
def probabilities(row_ptr, label, inside, classes, BLOCK: tl.constexpr):
    """Softmax probabilities of labels `[rows, segments]`; NaN for a label that is out of range."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_K: tl.constexpr = BLOCK.classes
    # The loops keep one maximum and one sum per column of the tile; they are reduced afterwards.
    largest = tl.full([BLOCK_R, BLOCK_K], float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(row_ptr[:, None] + k[None, :], (k < classes)[None, :], float("-inf"))
        largest = tl.maximum(largest, x.to(tl.float32))
    largest = tl.max(largest, 1)
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(row_ptr[:, None] + k[None, :], (k < classes)[None, :], float("-inf"))
        total += tl.exp(x.to(tl.float32) - largest[:, None])
    total = tl.sum(total, 1)
    is_valid = (label >= 0) & (label < classes - 1)
    x = tl.load(row_ptr[:, None] + label[None, :], inside & is_valid[None, :], 0.0)
    probability = tl.exp(x.to(tl.float32) - largest[:, None]) / total[:, None]
    return tl.where(is_valid[None, :], probability, float("nan"))


@triton.jit
def cost_kernel(
    masks,
    class_logits_ptr,
    labels_ptr,
    counts_ptr,
    partial,
    cost_ptr,
    sizes,
    weights,
    VARIANT: tl.constexpr,
    MASKS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`cost [L, B, Q, T]` from the partial sums and `class_logits [L, B, Q, classes]`."""
    BLOCK_R: tl.constexpr = BLOCK.rows
    BLOCK_T: tl.constexpr = BLOCK.segments
    BLOCK_P: tl.constexpr = MASKS_BLOCK.pixels
    queries, max_count = sizes.queries, plain(sizes.max_count)
    image = tl.program_id(2)
    num_segments = plain(masks.sizes.num_segments)
    count, first = segments_of_image(counts_ptr, image, max_count, num_segments, BLOCK.images)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row, is_segment = row < sizes.rows, t < count
    gain, sigmoid, all_negative, all_sigmoid, area = sums_of_splits(
        partial, image, row, t, count, sizes, BLOCK
    )

    # NaN fails the comparison, so that it is kept. This is not a function of its own, because
    # Triton 3.6 loses the constants in nested tuples that are passed to functions.
    if tl.max(tl.where(all_negative > sizes.pixels * LARGE, 1, 0)) > 0:
        factors, of_masks, focal = masks.factors, masks.sizes, masks.focal
        embed, features = factors.embed, factors.features
        target_size = of_masks.target_height.to(tl.int64) * of_masks.target_width
        segments_ptr = masks.segments_ptr + (image if VARIANT.label_map else first) * target_size
        embed_ptr = embed.ptr + row_offset(row // queries, image, row % queries, embed)
        features_ptr = features.ptr + image.to(tl.int64) * features.image_stride
        e = embed_ptr
        if VARIANT.factored and VARIANT.all_channels:
            c = tl.arange(0, MASKS_BLOCK.channels)
            e = load_embed(embed_ptr, c, embed, is_row, of_masks.channels, VARIANT)
        scale = tl.full([BLOCK_R], 1.0, tl.float32)
        if VARIANT.parts > 0:
            row_scale = tl.load(factors.embed_scales_ptr + image * sizes.rows + row, is_row, 0.0)
            blocks = tl.cdiv(sizes.pixels, PIXELS_OF_A_SCALE)
            scales_ptr = factors.features_scales_ptr + image * blocks
        index = tl.arange(0, BLOCK_P)
        permuted_index = (index & -8) + 2 * (index & 3) + ((index >> 2) & 1)
        sums = tl.zeros([BLOCK_R, BLOCK_T], tl.float32)
        for start in range(0, sizes.pixels, BLOCK_P):
            p = start + permuted_index
            is_pixel = p < sizes.pixels
            width = plain(of_masks.width)
            position = (p // width, p % width)
            segments = load_segments(
                *(position, is_pixel, t, count, segments_ptr, of_masks, masks.ratio),
                VARIANT.label_map,
            )
            members = members_of(segments, is_pixel, t, max_count, VARIANT.label_map)
            if VARIANT.parts > 0:
                scale = tl.minimum(
                    row_scale * tl.load(scales_ptr + start // PIXELS_OF_A_SCALE), 2.0e38
                )
            logits = logits_tile(
                *(embed_ptr, e, features_ptr, start, start + index < sizes.pixels, start >= 0),
                *(embed, features, is_row, of_masks.channels, VARIANT, MASKS_BLOCK),
            )
            y = logits * (scale * MINUS_LOG2_E)[:, None]
            _, positive, negative = focal_maps(y, focal, VARIANT.square)
            # Tensor cores round sums towards zero, and such errors accumulate; so they sum up only
            # one block, and blocks are added outside.
            more = add_sums(tl.zeros([BLOCK_R, BLOCK_T], tl.float32), positive, members)
            sums += add_sums(more, negative, is_pixel[:, None].to(tl.float32) - members)
        gain = sums * focal.scale
        all_negative = tl.zeros([BLOCK_R], tl.float32)

    # Clamp rows beyond the last one, so that loads are in bounds; they are not stored.
    row = tl.minimum(row, sizes.rows - 1)
    row_index = ((row // queries).to(tl.int64) * tl.num_programs(2) + image) * queries
    row_index += row % queries
    label = tl.load(labels_ptr + first + t, mask=is_segment, other=0)
    probability = probabilities(
        *(class_logits_ptr + row_index * sizes.classes, label),
        *(is_row[:, None] & is_segment[None, :], sizes.classes, BLOCK),
    )
    focal_cost = (gain + all_negative[:, None]) / sizes.pixels
    dice = 1.0 - (2.0 * sigmoid + 1.0) / (all_sigmoid[:, None] + area[None, :] + 1.0)
    cost = weights.mask_weight * focal_cost - weights.class_weight * probability
    cost += weights.dice_weight * dice
    tl.store(
        cost_ptr + row_index[:, None] * max_count + t[None, :],
        tl.where(is_segment[None, :], cost, 0.0),
        mask=is_row[:, None] & (t < max_count)[None, :],
    )
