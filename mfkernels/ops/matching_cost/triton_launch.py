"""Launches of the Triton kernels of the matching cost."""

from __future__ import annotations

import torch
from torch import Tensor

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
    FeatureStride,
    FocalParameters,
    PredictionStride,
    Product,
)
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import check_floats, stored_segments, with_flat_pixels

PIXELS_OF_A_SPLIT = 2048
ROWS_OF_A_PROGRAM = 128
ROWS_OF_A_COST_PROGRAM = 16


def matching_cost(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    max_count: int,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    alpha: float,
    gamma: float,
) -> Tensor:
    """The operator `mfkernels::matching_cost`: the cost `[L, B, Q, T]`, float32.

    `class_logits [L, B, Q, K+1]`; `mask_embed [L, B, Q, C]` with `pixel_features [B, C, h, w]`, or
    dense logits `[L, B, Q, h, w]` with none; `label_map [B, H, W]`, int16, or `masks [N, H, W]`,
    bool; `labels [N]` and `counts [B]`, int64; T is `max_count`. The cost is 0 beyond an image's
    own segments and NaN for a label outside [0, K).
    """
    check_floats("matching_cost", class_logits, mask_embed, pixel_features)
    layers, images, queries, classes = class_logits.shape
    cost = class_logits.new_empty((layers, images, queries, max_count), dtype=torch.float32)
    if cost.numel() == 0:
        return cost
    rows = layers * queries
    height, width = (mask_embed if pixel_features is None else pixel_features).shape[-2:]
    splits = cdiv(height * width, PIXELS_OF_A_SPLIT)
    # New memory is never read before it was written: every program stores all of its part.
    partial = PartialSums(
        sums_ptr=cost.new_empty((splits, images, rows, 2 * max_count + 2)),
        areas_ptr=cost.new_empty((splits, images, max_count)),
    )
    _launch_sums(
        mask_embed,
        pixel_features,
        stored_segments(label_map, masks),
        counts,
        partial,
        FocalParameters.of(alpha, gamma),
        label_map is not None,
    )
    sizes = CostSizes(
        splits=splits,
        rows=rows,
        queries=queries,
        classes=classes,
        max_count=max_count,
        pixels=height * width,
    )
    weights = CostWeights(float(class_weight), float(mask_weight), float(dice_weight))
    _launch_cost(class_logits, labels, counts, partial, cost, sizes, weights)
    return cost


def _launch_cost(
    class_logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    partial: PartialSums,
    cost: Tensor,
    sizes: CostSizes,
    weights: CostWeights,
) -> None:
    """Fill `cost [L, B, Q, T]`; tensors as for `matching_cost`."""
    images = len(counts)
    block = CostBlock(
        rows=ROWS_OF_A_COST_PROGRAM,
        segments=_segments_of_a_block(sizes.max_count),
        classes=min(power_of_2(sizes.classes), 128),
        images=min(power_of_2(images), 64),
    )
    launcher.launch(
        cost_kernel,
        (cdiv(sizes.rows, block.rows), cdiv(sizes.max_count, block.segments), images),
        class_logits_ptr=class_logits.contiguous(),
        labels_ptr=labels,
        counts_ptr=counts,
        partial=partial,
        cost_ptr=cost,
        sizes=sizes,
        weights=weights,
        BLOCK=block,
        num_warps=4,
    )


def _segments_of_a_block(max_count: int) -> int:
    return min(power_of_2(max_count, 16), 64)


def _launch_sums(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    segments: Tensor,
    counts: Tensor,
    partial: PartialSums,
    focal: FocalParameters,
    is_label_map: bool,
) -> None:
    """Fill `partial`; tensors as for `matching_cost`, `segments` as stored."""
    factored = pixel_features is not None
    features = with_flat_pixels(mask_embed if pixel_features is None else pixel_features)
    embed = mask_embed if factored else features
    layers, images, queries = embed.shape[:3]
    height, width = features.shape[-2:]
    target_height, target_width = segments.shape[-2:]
    splits, _, max_count = partial.areas_ptr.shape
    sizes = Sizes(
        rows=layers * queries,
        queries=queries,
        channels=mask_embed.shape[-1] if factored else 1,
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
        embed_ptr=embed,
        features_ptr=features,
        segments_ptr=segments,
        counts_ptr=counts,
        partial=partial,
        sizes=sizes,
        embed_stride=PredictionStride.of(embed, dense=not factored),
        features_stride=FeatureStride.of(features) if factored else FeatureStride(),
        ratio=Ratio(target_height / height, target_width / width),
        focal=focal,
        VARIANT=Variant(
            factored=factored,
            all_channels=all_channels,
            whole_tiles=height * width % block.pixels == 0,
            label_map=is_label_map,
            square=focal.gamma == 2,
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
