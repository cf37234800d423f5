"""Launches of the Triton kernels of the matching cost."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfkernels.ops.matching_cost.operator import Inputs
from mfkernels.ops.matching_cost.triton_cost import (
    CostBlock,
    CostSizes,
    CostWeights,
    cost_kernel,
)
from mfkernels.ops.matching_cost.triton_kernels import (
    Block,
    Factors,
    Focal,
    Masks,
    PartialSums,
    Ratio,
    Sizes,
    Variant,
    sums_kernel,
)
from mfkernels.ops.matching_cost.triton_parts import (
    PIXELS_OF_A_RUN,
    PIXELS_OF_A_SCALE,
    PartsBlock,
    PartsSizes,
    parts_kernel,
)
from mfkernels.triton import devices, launcher
from mfkernels.triton.arguments import (
    Features,
    Predictions,
    Product,
)
from mfkernels.triton.devices import Gpu
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.math import images_at_once
from mfkernels.triton.tensors import (
    check_floats,
    pixel_stride,
    stored_segments,
    tf32_allowed,
    with_flat_pixels,
)

PIXELS_OF_A_SPLIT = 2048
ROWS_OF_A_PARTS_PROGRAM = 64
BITS_OF_A_LEADING_PART = 10
FEW_SEGMENTS = 32
MOST_RESIDENT_CHANNELS = 256
"""With at most so many channels, the embeddings of a program stay in shared memory."""
LARGEST_BLOCK: int = PIXELS_OF_A_SCALE.value
"""The largest block of pixels. Sizes that it divides are also aligned for asynchronous copies."""
ROWS_OF_A_COST_PROGRAM = 16
SEGMENTS_OF_A_COST_PROGRAM = 16


def matching_cost(*arguments: Any) -> Tensor:
    """The operator `mfkernels::matching_cost`: the cost `[L, B, Q, T]`, float32.

    Takes `class_logits [L, B, Q, K+1]`; `mask_embed [L, B, Q, C]` with `pixel_features
    [B, C, h, w]`, or dense logits `[L, B, Q, h, w]` with None; `label_map [B, H, W]` int16 or
    `masks [N, H, W]` bool; `labels [N]` and `counts [B]`, both int64. T is `max_count`. The cost is
    0 beyond an image's own segments and NaN for a label outside [0, K).
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
    # Uninitialised memory is safe here: every program stores all of its part.
    partial = PartialSums(
        sums_ptr=cost.new_empty((splits, images, layers * queries, 2 * max_count + 2)),
        areas_ptr=cost.new_empty((splits, images, max_count)),
    )
    prepared = _prepare(given)
    _launch_sums(given, prepared, partial)
    _launch_cost(given, prepared, partial, cost)
    return cost


def _launch_cost(given: Inputs, prepared: _Prepared, partial: PartialSums, cost: Tensor) -> None:
    """Fill `cost [L, B, Q, T]`."""
    of_masks = prepared.masks.sizes
    layers, images, queries, classes = given.class_logits.shape
    sizes = CostSizes(
        splits=len(partial.areas_ptr),
        rows=layers * queries,
        queries=queries,
        classes=classes,
        max_count=given.max_count,
        pixels=of_masks.height * of_masks.width,
    )
    block = CostBlock(
        rows=ROWS_OF_A_COST_PROGRAM,
        segments=SEGMENTS_OF_A_COST_PROGRAM,
        classes=min(power_of_2(classes), 128),
        images=images_at_once(images),
    )
    masks_block = prepared.plan.block._replace(
        rows=block.rows, segments=block.segments, pixels=16, stages=2
    )
    # Small enough that no registers spill; see test_triton_compilation.py.
    masks_block = masks_block._replace(channels=min(masks_block.channels, 64))
    launcher.launch(
        cost_kernel,
        (cdiv(sizes.rows, block.rows), cdiv(sizes.max_count, block.segments), images),
        masks=prepared.masks.as_argument(),
        class_logits_ptr=given.class_logits.contiguous(),
        labels_ptr=given.labels.contiguous(),
        counts_ptr=given.counts.contiguous(),
        partial=partial,
        cost_ptr=cost,
        sizes=sizes.as_argument(),
        weights=CostWeights(
            float(given.class_weight), float(given.mask_weight), float(given.dice_weight)
        ),
        VARIANT=prepared.variant._replace(all_channels=of_masks.channels <= masks_block.channels),
        MASKS_BLOCK=masks_block,
        BLOCK=block,
        num_warps=4,
        num_stages=2,
        maxnreg=255,
    )


class _Prepared(NamedTuple):
    """The arguments that both kernels share."""

    masks: Masks
    variant: Variant
    plan: Plan


def _prepare(given: Inputs) -> _Prepared:
    factored = given.pixel_features is not None
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
        num_segments=len(given.labels),
    )
    few = sizes.max_count < FEW_SEGMENTS and given.label_map is not None
    parts = _number_of_parts(embed, features) if factored else 0
    plan = plan_sums(sizes, images, parts, factored, few, devices.gpu_of(features.device))
    block = plan.block
    factors = Factors(
        Predictions.of(embed, dense=not factored),
        Features.of(features) if factored else Features(features),
    )
    if parts > 0:
        assert block.pixels in (PIXELS_OF_A_RUN.value, LARGEST_BLOCK), "of one scale, in whole runs"
        factors = _split(factors, sizes, images, parts)
    masks = Masks(
        factors=factors,
        segments_ptr=segments,
        sizes=sizes,
        ratio=Ratio(target_height / height, target_width / width),
        focal=Focal.of(given.alpha, given.gamma),
    )
    variant = Variant(
        factored=factored,
        all_channels=sizes.channels <= block.channels,
        whole_tiles=height * width % block.pixels == 0,
        label_map=given.label_map is not None,
        square=given.gamma == 2,
        parts=parts,
    )
    return _Prepared(masks, variant, plan)


def _launch_sums(given: Inputs, prepared: _Prepared, partial: PartialSums) -> None:
    """Fill `partial`."""
    sizes, block = prepared.masks.sizes, prepared.plan.block
    launcher.launch(
        sums_kernel,
        (
            cdiv(sizes.rows, block.rows),
            len(partial.areas_ptr) * cdiv(sizes.max_count + 1, block.segments),
            len(given.counts),
        ),
        masks=prepared.masks.as_argument(),
        counts_ptr=given.counts.contiguous(),
        partial=partial,
        VARIANT=prepared.variant,
        BLOCK=block,
        num_warps=block.rows // 16,
        num_stages=block.stages,
        maxnreg=prepared.plan.registers,
    )


def _number_of_parts(embed: Tensor, features: Tensor) -> int:
    """The number of float16 parts that factors are split into; see `Variant.parts`.

    Half precision is used as it is (0), or copied to one aligned part. One part is as exact as
    TF32, if the user allows it; float32 takes two.
    """
    half = Product.of(embed, features).half
    if half and _copied_asynchronously(embed, features):
        return 0
    return 1 if half or tf32_allowed() else 2


def _copied_asynchronously(embed: Tensor, features: Tensor) -> bool:
    """Whether all tiles of the factors are copied to shared memory asynchronously (`cp.async`).

    The copies must be aligned to 16 bytes. Otherwise Triton 3.6 does not pipeline them, and then
    generates a product that reads beyond its shared memory: wrong sums on an H200.
    """
    pixels = features.shape[-2] * features.shape[-1]
    sizes = (pixels, embed.shape[-1], *features.stride()[:2], features.data_ptr())
    aligned = pixel_stride(features) == 1 and all(size % LARGEST_BLOCK == 0 for size in sizes)
    if embed.shape[-1] > MOST_RESIDENT_CHANNELS:  # embeddings come with each block of channels
        *strides, channel = embed.stride()
        starts = (*strides, embed.data_ptr())
        aligned = aligned and channel == 1 and all(start % LARGEST_BLOCK == 0 for start in starts)
    return aligned and devices.gpu_of(features.device).generation.copies_asynchronously


def _split(factors: Factors, sizes: Sizes, images: int, parts: int) -> Factors:
    """Split both factors into float16 parts. With two parts, the copies are as large as float32."""
    embed, features = factors.embed.ptr, factors.features.ptr
    rows, channels, pixels = sizes.rows, sizes.channels, sizes.height * sizes.width
    blocks, run = cdiv(pixels, LARGEST_BLOCK), PIXELS_OF_A_RUN.value
    runs = blocks * (LARGEST_BLOCK // run)
    half = torch.float16
    e = embed.new_empty((images, rows, parts, channels), dtype=half)
    e_scales = embed.new_empty((images, rows), dtype=torch.float32)
    f = features.new_empty((images, channels, runs, parts, run), dtype=half)
    f_scales = features.new_empty((images, blocks), dtype=torch.float32)
    launcher.launch(
        parts_kernel,
        (blocks + cdiv(rows, ROWS_OF_A_PARTS_PROGRAM), images),
        embed=factors.embed,
        features=factors.features,
        embed_parts_ptr=e,
        embed_scales_ptr=e_scales,
        features_parts_ptr=f,
        features_scales_ptr=f_scales,
        sizes=PartsSizes(rows, sizes.queries, channels, pixels, blocks).as_argument(),
        BLOCK=PartsBlock(
            rows=ROWS_OF_A_PARTS_PROGRAM,
            channels=min(power_of_2(channels), 64),
            bits=BITS_OF_A_LEADING_PART if parts == 2 else 11,
        ),
        PARTS=parts,
        num_warps=8,
    )
    image, row = e.stride()[:2]
    return Factors(
        Predictions(e, sizes.queries * row, image, row, channel_stride=1),
        Features(f, *f.stride()[:2]),
        e_scales,
        f_scales,
    )


class Plan(NamedTuple):
    """The launch options of the first kernel."""

    block: Block
    registers: int
    """The limit per thread."""


def plan_sums(sizes: Sizes, images: int, parts: int, factored: bool, few: bool, gpu: Gpu) -> Plan:
    """Choose the block sizes; `few`: the targets are a label map with few segments per image."""
    on_hopper = gpu.generation.factors == "shared memory"
    segments = next((n for n in (16, FEW_SEGMENTS) if sizes.max_count < n), 64)
    segments = min(segments, gpu.generation.max_sum_columns)
    # The largest block whose values fit the registers; see test_triton_compilation.py.
    many = gpu.generation.copies_asynchronously and (
        factored or gpu.generation.max_sum_columns > 32
    )
    block = Block(
        rows=128,
        pixels=LARGEST_BLOCK if few and many else 16,
        channels=power_of_2(sizes.channels, 16),
        segments=segments,
        images=images_at_once(images),
        pixels_of_split=PIXELS_OF_A_SPLIT,
        stages=2,
    )
    resides = on_hopper or (parts < 2 and gpu.generation.copies_asynchronously)
    if sizes.channels <= MOST_RESIDENT_CHANNELS and resides:
        # Two programs per multiprocessor hide more latency than a third buffer does.
        stages = (3, 2) if on_hopper and parts == 2 else (2,)
        for rows, pixels, buffers in itertools.product(
            (block.rows, 64), (block.pixels, 16), stages
        ):
            resident = block._replace(rows=rows, pixels=pixels, stages=buffers)
            buffers = buffers if on_hopper else buffers + 1
            if _shared_memory_of(resident, parts, buffers) <= gpu.shared_memory:
                # For two programs per multiprocessor, a thread may have at most 128 registers.
                two = on_hopper and factored and parts < 2 and segments <= 32
                return Plan(resident, registers=128 if two else 255)
    if not gpu.generation.bfloat16:
        return Plan(block._replace(pixels=16, channels=16), 255)
    return Plan(block._replace(pixels=min(block.pixels, 1024 // segments), channels=32), 255)


def _shared_memory_of(block: Block, parts: int, buffers: int) -> int:
    """Bytes of the embeddings, of the buffers of features, and of the one-hot segments."""
    tiles = block.rows + buffers * block.pixels
    return 2 * max(parts, 1) * block.channels * tiles + 4 * block.pixels * block.segments
