"""Launches of the Triton kernels of semantic and panoptic inference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.segmentation.triton_kernels import (
    FIELDS,
    ProbabilitySizes,
    SemanticSizes,
    TilesBlock,
    View,
    certain_kernel,
    extremes_kernel,
    prepare_kernel,
    semantic_kernel,
)
from mfkernels.ops.segmentation.triton_logits_by_pixel import (
    CHUNK,
    columns_of,
    logits_by_pixel,
)
from mfkernels.ops.segmentation.triton_owners import (
    TILE,
    OwnersSizes,
    keep_kernel,
    owners_kernel,
)
from mfkernels.ops.segmentation.triton_plan import Options, Plan, plan_of
from mfkernels.triton import devices, launcher
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.tensors import check_floats


@dataclass(frozen=True)
class _Workspace:
    """The intermediate results of the kernels of `semantic_segmentation`, for all views."""

    logits: Tensor
    """Logits by pixel, view after view; see `View`."""
    parts: Tensor
    """Probabilities in two parts; see `part_offset`."""
    description: Tensor
    """The views as integers, `[views, FIELDS]` int64."""


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
    """The operator `mfkernels::semantic_segmentation`, for one image.

    Takes for each view: `probability [Q, K]`; `mask_embed [Q, C]` with `pixel_features [C, h, w]`,
    or dense logits `[Q, h, w]` and no features; height and width of its padded input and of its
    image, and whether it is flipped. Returns `labels [H, W]` int64, and `scores [K, H, W]` float32,
    or `[0]` without `return_scores`.
    """
    check_floats("semantic_segmentation", *probability, *mask_embed, *pixel_features)
    sides = (padded_heights, padded_widths, image_heights, image_widths)
    frames = [
        _frame(masks.shape[-2:], side, mirrored, (height, width))
        for masks, mirrored, *side in zip(
            pixel_features or mask_embed, flipped, *sides, strict=True
        )
    ]
    first, classes = probability[0], probability[0].shape[1]
    options = Options(resize_logits, return_scores, devices.gpu_of(first.device))
    plan = plan_of(frames, [len(p) for p in probability], classes, (height, width), options)
    in_parts = plan.patch.size > 0
    workspace = _Workspace(
        logits=first.new_empty(plan.elements, dtype=torch.float16 if in_parts else torch.float32),
        parts=first.new_empty(2 * plan.rows * plan.class_columns, dtype=torch.float16),
        description=first.new_empty((len(frames), FIELDS.value), dtype=torch.int64),
    )
    for index, view in enumerate(plan.views):
        _prepare_view(probability[index], workspace, index, view, plan)
        begin, pixels = view.first_block * 16, view.mask_height * view.mask_width
        shape = (pixels, 2, view.columns) if in_parts else (pixels, view.columns)
        logits = workspace.logits[begin : begin + math.prod(shape)].view(shape)
        features = pixel_features[index] if pixel_features else None
        logits_by_pixel(mask_embed[index], features, None, logits)
    labels = first.new_empty((height, width), dtype=torch.int64)
    scores_shape = (classes, height, width) if return_scores else (0,)
    scores = first.new_empty(scores_shape, dtype=torch.float32)
    sizes = SemanticSizes(len(frames), classes, plan.rows, plan.class_columns, height, width)
    certain = first.new_empty(math.prod(plan.tiles), dtype=torch.int32)
    if not return_scores:
        _launch_certain(workspace, certain, sizes, plan)
    _launch_semantic(workspace, certain, labels, scores, sizes, plan)
    return labels, scores


def _frame(mask: tuple[int, int], sides: list[int], flipped: bool, result: tuple[int, int]) -> View:
    """Make a view; `plan_of` sets its offsets in the workspaces."""
    input_height, input_width, image_height, image_width = sides
    return View(
        first_block=0,
        first_row=0,
        columns=0,
        mask_height=mask[0],
        mask_width=mask[1],
        input_height=input_height,
        input_width=input_width,
        image_height=image_height,
        image_width=image_width,
        flipped=int(flipped),
        mask_step_y=mask[0] / input_height,
        mask_step_x=mask[1] / input_width,
        image_step_y=image_height / result[0],
        image_step_x=image_width / result[1],
    )


def _prepare_view(
    probability: Tensor, workspace: _Workspace, index: int, view: View, plan: Plan
) -> None:
    """Fill a view's part of the workspace except the logits."""
    queries, classes = probability.shape
    p = probability.float()
    p = p if probability.stride(1) == 1 else p.contiguous()
    launcher.launch(
        prepare_kernel,
        (view.columns,),
        probability_ptr=p,
        parts_ptr=workspace.parts,
        description_ptr=workspace.description[index],
        sizes=ProbabilitySizes(queries, classes, p.stride(0), plan.rows, plan.class_columns),
        view=view.as_argument(),
        SIZE=plan.variant.classes,
        num_warps=1,
    )


def _launch_certain(
    workspace: _Workspace, certain: Tensor, sizes: SemanticSizes, plan: Plan
) -> None:
    """Fill `certain [tiles]`."""
    tiles = len(certain)
    extremes = workspace.parts.new_empty((2, tiles, plan.rows))
    block = TilesBlock(tiles=16, queries=64, classes=plan.variant.classes)
    for view in plan.views:
        launcher.launch(
            extremes_kernel,
            (cdiv(tiles, block.tiles), cdiv(view.columns, block.queries)),
            logits_ptr=workspace.logits[view.first_block * 16 :],
            extremes_ptr=extremes,
            view=view.as_argument(),
            sizes=sizes.as_argument(),
            tiles=tiles,
            RESIZED=plan.variant.resized,
            IN_PARTS=plan.patch.size > 0,
            TILE=plan.tile,
            BLOCK=block,
            num_warps=4,
        )
    in_registers = plan.gpu.generation.factors is None
    classes = plan.variant.classes
    block = TilesBlock(64 if classes <= 64 else 16, 16 if in_registers else 32, classes)
    launcher.launch(
        certain_kernel,
        (cdiv(tiles, block.tiles),),
        extremes_ptr=extremes,
        parts_ptr=workspace.parts,
        certain_ptr=certain,
        tiles=tiles,
        sizes=sizes.as_argument(),
        BLOCK=block,
        num_warps=4,
        num_stages=3,
    )


def _launch_semantic(
    workspace: _Workspace,
    certain: Tensor,
    labels: Tensor,
    scores: Tensor,
    sizes: SemanticSizes,
    plan: Plan,
) -> None:
    """Fill `labels [H, W]`, and `scores [K, H, W]` if they are requested."""
    launcher.launch(
        semantic_kernel,
        plan.tiles,
        logits_ptr=workspace.logits,
        parts_ptr=workspace.parts,
        description_ptr=workspace.description,
        certain_ptr=certain,
        labels_ptr=labels,
        scores_ptr=scores,
        sizes=sizes.as_argument(),
        view=plan.views[0].as_argument(),
        VARIANT=plan.variant,
        TILE=plan.tile,
        PATCH=plan.patch,
        PIECES=plan.pieces,
        **plan.options(),
    )


def panoptic_owners(
    scores: Tensor, mask_embed: Tensor, pixel_features: Tensor | None, *sizes: Any
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::panoptic_owners`, for one image.

    Takes `scores [Q]`, negative for a query that is not kept; masks as in `semantic_segmentation`;
    and as `sizes`: height and width of the padded input, of the image and of the result, and
    `confident_only` (only pixels where the mask of their owner is at least 0.5 are in `owners`).
    Returns `owners [H, W]` int32, −1 for none, and `counts [Q, 3]` int64, three numbers of pixels:
    those that a query owns; those where its mask is at least 0.5, owned or not; and those that it
    has in `owners`.
    """
    check_floats("panoptic_owners", scores, mask_embed, pixel_features)
    *_, image_height, image_width, height, width, confident_only = sizes
    queries, columns = scores.shape[0], columns_of(scores.shape[0])
    mask_height, mask_width = (mask_embed if pixel_features is None else pixel_features).shape[-2:]
    owners = scores.new_empty((height, width), dtype=torch.int32)
    counts = scores.new_empty((queries, 3), dtype=torch.int64)
    order = scores.new_empty(columns, dtype=torch.int32)
    weights = scores.new_empty(columns, dtype=torch.float32)
    kept = scores.new_empty(1, dtype=torch.int32)
    logits = scores.new_empty((mask_height * mask_width, columns), dtype=torch.float32)
    launcher.launch(
        keep_kernel,
        (columns,),
        scores_ptr=scores.contiguous(),
        order_ptr=order,
        weights_ptr=weights,
        counts_ptr=counts,
        kept_ptr=kept,
        queries=queries,
        BLOCK_Q=128,
        num_warps=1,
    )
    logits_by_pixel(mask_embed, pixel_features, order, logits)
    resized = (image_height, image_width) != (height, width)
    launcher.launch(
        owners_kernel,
        (cdiv(width, TILE.width), cdiv(height, TILE.height)),
        logits_ptr=logits,
        order_ptr=order,
        weights_ptr=weights,
        kept_ptr=kept,
        owners_ptr=owners,
        counts_ptr=counts,
        sizes=OwnersSizes(columns, mask_height, mask_width, *sizes[:-1]).as_argument(),
        CONFIDENT_ONLY=confident_only,
        RESIZED=resized,
        TILE=TILE,
        # With twice this size, some of the supported versions of Triton spill a few registers.
        CHUNK=CHUNK // 2 if resized else CHUNK,
        num_warps=4 if resized else 8,
        num_stages=1,
    )
    return owners, counts
