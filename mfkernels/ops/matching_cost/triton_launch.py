"""Launches of the Triton kernels of the matching cost."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfkernels.ops.matching_cost.operator import Inputs
from mfkernels.ops.matching_cost.triton_kernels import (
    Block,
    Focal,
    Scales,
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
from mfkernels.ops.matching_cost.triton_parts import embed_parts_kernel, features_parts_kernel
from mfkernels.triton import launcher
from mfkernels.triton.arguments import (
    Features,
    Predictions,
    Product,
)
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import check_floats, float32_precision, stored_segments, with_flat_pixels

PIXELS_OF_A_SPLIT = 2048
CHANNELS_OF_A_PLANES_BLOCK = 64
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
        segments=min(power_of_2(sizes.max_count, 16), 64),
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
    sizes = Sizes(
        rows=layers * queries,
        queries=queries,
        channels=embed.shape[-1] if factored else 1,
        height=height,
        width=width,
        target_height=target_height,
        target_width=target_width,
        max_count=given.max_count,
    )
    in_parts = factored and not Product.of(embed, features).half
    parts = (1 if float32_precision() == "tf32" else 2) if in_parts else 0
    plan = _plan(sizes, images, factored, parts)
    block = plan.block
    rows, columns = Predictions.of(embed, dense=not factored), Features(features)
    scales = Scales()
    if factored:
        columns = Features.of(features)
    if parts > 0:
        rows, columns, scales = _parts(embed, features, parts, block.pixels)
    launcher.launch(
        sums_kernel,
        (
            cdiv(sizes.rows, block.rows),
            len(partial.areas_ptr) * cdiv(sizes.max_count + 1, block.segments),
            images,
        ),
        embed=rows,
        features=columns,
        scales=scales,
        segments_ptr=segments,
        counts_ptr=given.counts,
        partial=partial,
        sizes=sizes,
        ratio=Ratio(target_height / height, target_width / width),
        focal=_focal(given.alpha, given.gamma),
        VARIANT=Variant(
            factored=factored,
            all_channels=sizes.channels <= block.channels,
            whole_tiles=height * width % block.pixels == 0,
            label_map=is_label_map,
            square=given.gamma == 2,
            parts=parts,
        ),
        BLOCK=block,
        num_warps=plan.warps,
        num_stages=block.stages,
        maxnreg=plan.registers,
    )


def _focal(alpha: float, gamma: float) -> Focal:
    positive, negative = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    larger = max(positive, negative)
    return Focal(
        scale=larger * math.log(2),
        positive=math.sqrt(positive / larger),
        negative=1 if negative == larger else negative / larger,
        gamma=float(gamma),
    )


def _parts(
    embed: Tensor, features: Tensor, parts: int, pixels_of_a_block: int
) -> tuple[Predictions, Features, Scales]:
    """Both factors as sums of float16 tensors, and their scales."""
    layers, images, queries, channels = embed.shape
    rows, block_c = layers * queries, min(power_of_2(channels), 64)
    e = embed.new_empty((images, rows, parts, channels), dtype=torch.float16)
    e_scales = embed.new_empty((images, rows), dtype=torch.float32)
    launcher.launch(
        embed_parts_kernel,
        (cdiv(rows, 32), images),
        embed=Predictions.of(embed, dense=False),
        parts_ptr=e,
        scales_ptr=e_scales,
        rows=rows,
        queries=queries,
        channels=channels,
        BLOCK_R=32,
        BLOCK_C=block_c,
        PARTS=parts,
        num_warps=4,
    )
    pixels = features.shape[-2] * features.shape[-1]
    blocks = cdiv(pixels, pixels_of_a_block)
    shape = (images, channels, blocks, parts, pixels_of_a_block)
    f = features.new_empty(shape, dtype=torch.float16)
    f_scales = features.new_empty((images, blocks), dtype=torch.float32)
    launcher.launch(
        features_parts_kernel,
        (blocks, images),
        features=Features.of(features),
        parts_ptr=f,
        scales_ptr=f_scales,
        channels=channels,
        pixels=pixels,
        BLOCK_C=block_c,
        BLOCK_P=pixels_of_a_block,
        PARTS=parts,
        num_warps=8,
    )
    image, row = e.stride()[:2]
    return (
        Predictions(e, queries * row, image, row, 1, channels),
        Features(f, *f.stride()[:2]),
        Scales(e_scales, f_scales),
    )


class Plan(NamedTuple):
    """How the first kernel is launched."""

    block: Block
    warps: int
    registers: int


def _plan(sizes: Sizes, images: int, factored: bool, parts: int) -> Plan:
    segments = min(power_of_2(sizes.max_count + 1, 16), 64)
    channels = power_of_2(sizes.channels, 16)
    block = Block(
        rows=128,
        pixels=32,
        channels=channels if channels <= 256 else 64,
        segments=segments,
        images=min(power_of_2(images), 64),
        pixels_of_split=PIXELS_OF_A_SPLIT,
        stages=2,
        pieces=4,
    )
    return Plan(block, warps=8, registers=255 if parts else 128)
