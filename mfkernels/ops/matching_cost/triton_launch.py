"""Launches of the Triton kernels of the matching cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.matching_cost.operator import Inputs
from mfkernels.ops.matching_cost.triton_kernels import (
    Block,
    CostBlock,
    CostSizes,
    CostWeights,
    PartialSums,
    Ratio,
    Sizes,
    Variant,
    cost_kernel,
    sums_kernel,
)
from mfkernels.triton import launcher
from mfkernels.triton.arguments import (
    Features,
    FocalParameters,
    Predictions,
    Product,
)
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import check_floats, stored_segments, with_flat_pixels

PIXELS_OF_A_SPLIT = 2048
ROWS_OF_A_PROGRAM = 128
ROWS_OF_A_COST_PROGRAM = 16


def matching_cost(*arguments: Any) -> Tensor:
    """The operator `mfkernels::matching_cost`: the cost `[L, B, Q, T]`, float32.

    `class_logits [L, B, Q, K+1]`; `mask_embed [L, B, Q, C]` with `pixel_features [B, C, h, w]`, or
    dense logits `[L, B, Q, h, w]` with none; `label_map [B, H, W]`, int16, or `masks [N, H, W]`,
    bool; `labels [N]` and `counts [B]`, int64; T is `max_count`. The cost is 0 beyond an image's
    own segments and NaN for a label outside [0, K).
    """
    given = Inputs(*arguments)
    check_floats("matching_cost", given.class_logits, given.mask_embed, given.pixel_features)
    layers, images, queries, _ = given.class_logits.shape
    max_count = given.max_count
    cost = given.class_logits.new_empty((layers, images, queries, max_count), dtype=torch.float32)
    if cost.numel() == 0:
        return cost
    features = given.mask_embed if given.pixel_features is None else given.pixel_features
    pixels = features.shape[-2] * features.shape[-1]
    splits = cdiv(pixels, PIXELS_OF_A_SPLIT)
    # New memory is never read before it was written: every program stores all of its part.
    partial = PartialSums(
        sums_ptr=cost.new_empty((splits, images, layers * queries, 2 * max_count + 2)),
        areas_ptr=cost.new_empty((splits, images, max_count)),
    )
    _launch_sums(given, partial)
    _launch_cost(given, partial, pixels, cost)
    return cost


def _launch_cost(given: Inputs, partial: PartialSums, pixels: int, cost: Tensor) -> None:
    """Fill `cost [L, B, Q, T]`."""
    layers, images, queries, classes = given.class_logits.shape
    sizes = CostSizes(
        splits=len(partial.areas_ptr),
        rows=layers * queries,
        queries=queries,
        classes=classes,
        max_count=given.max_count,
        pixels=pixels,
    )
    block = CostBlock(
        rows=ROWS_OF_A_COST_PROGRAM,
        segments=_segments_of_a_block(sizes.max_count),
        classes=min(power_of_2(classes), 128),
        images=min(power_of_2(images), 64),
    )
    launcher.launch(
        cost_kernel,
        (cdiv(sizes.rows, block.rows), cdiv(sizes.max_count, block.segments), images),
        class_logits_ptr=given.class_logits.contiguous(),
        labels_ptr=given.labels,
        counts_ptr=given.counts,
        partial=partial,
        cost_ptr=cost,
        sizes=sizes,
        weights=CostWeights(
            float(given.class_weight), float(given.mask_weight), float(given.dice_weight)
        ),
        BLOCK=block,
        num_warps=4,
    )


def _segments_of_a_block(max_count: int) -> int:
    return min(power_of_2(max_count, 16), 64)


def _launch_sums(given: Inputs, partial: PartialSums) -> None:
    """Fill `partial`."""
    factored, is_label_map = given.pixel_features is not None, given.label_map is not None
    features = given.mask_embed if given.pixel_features is None else given.pixel_features
    features = with_flat_pixels(features)
    embed = given.mask_embed if factored else features
    segments = stored_segments(given.label_map, given.masks)
    layers, images, queries = embed.shape[:3]
    height, width = features.shape[-2:]
    target_height, target_width = segments.shape[-2:]
    splits, max_count = len(partial.areas_ptr), given.max_count
    sizes = Sizes(
        rows=layers * queries,
        queries=queries,
        channels=embed.shape[-1] if factored else 1,
        height=height,
        width=width,
        target_height=target_height,
        target_width=target_width,
        max_count=max_count,
    )
    product = Product.of(embed, features)
    all_channels = not factored or (product.half and sizes.channels <= 256)
    block = _block(sizes, images, all_channels, is_label_map, product)
    launcher.launch(
        sums_kernel,
        (cdiv(sizes.rows, block.rows), splits * cdiv(max_count, block.segments), images),
        embed=Predictions.of(embed, dense=not factored),
        features=Features.of(features) if factored else Features(features),
        segments_ptr=segments,
        counts_ptr=given.counts,
        partial=partial,
        sizes=sizes,
        ratio=Ratio(target_height / height, target_width / width),
        focal=FocalParameters.of(given.alpha, given.gamma),
        VARIANT=Variant(
            factored=factored,
            all_channels=all_channels,
            whole_tiles=height * width % block.pixels == 0,
            label_map=is_label_map,
            square=given.gamma == 2,
            product=product,
        ),
        BLOCK=block,
        num_warps=8,
        num_stages=3,
        maxnreg=255,  # shared memory allows one program at a time anyway
    )


def _block(
    sizes: Sizes, images: int, all_channels: bool, is_label_map: bool, product: Product
) -> Block:
    segments = _segments_of_a_block(sizes.max_count)
    # As many pixels as the registers hold without spilling; see test_triton_compilation.py.
    crowded = segments == 64 or (segments == 32 and not is_label_map and not product.half)
    return Block(
        rows=ROWS_OF_A_PROGRAM,
        pixels=16 if crowded else 32,
        channels=power_of_2(sizes.channels, 16) if all_channels else 32,
        segments=segments,
        images=min(power_of_2(images), 64),
        pixels_of_split=PIXELS_OF_A_SPLIT,
    )
