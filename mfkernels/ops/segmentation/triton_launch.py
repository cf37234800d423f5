"""Launches of the Triton kernels of semantic and panoptic inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.segmentation.triton_kernels import (
    FIELDS,
    TILE,
    Negligible,
    OwnersSizes,
    PrepareBlock,
    PrepareSizes,
    SemanticBlock,
    SemanticSizes,
    SemanticVariant,
    View,
    bounds_kernel,
    keep_kernel,
    owners_kernel,
    prepare_kernel,
    semantic_kernel,
)
from mfkernels.ops.segmentation.triton_logits_by_pixel import (
    CHUNK,
    columns_of,
    logits_by_pixel,
)
from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import check_floats

IGNORED, NEGLIGIBLE = 0.1, 0.01
"""The most that queries without part in the guess may add to a score: together, and by itself."""


@dataclass(frozen=True)
class _Workspace:
    """What the kernels of `semantic_segmentation` leave for each other, all views together."""

    logits: Tensor
    """By pixel, view after view, `[h·w, columns]` each."""
    parts: Tensor
    description: Tensor
    ignored: Tensor


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
    """The operator `mfkernels::semantic_segmentation`, on one image.

    Of each view: `probability [Q, K]`; `mask_embed [Q, C]` with `pixel_features [C, h, w]`, or
    dense logits `[Q, h, w]` with none; height and width of its padded input and of its image, and
    whether it is mirrored. Returns `labels [H, W]`, int64, and `scores [K, H, W]`,
    float32, or `[0]` where they are not wanted.
    """
    check_floats("semantic_segmentation", *probability, *mask_embed, *pixel_features)
    views = len(probability)
    first = probability[0]
    classes = first.shape[1]
    resized = {*image_heights} != {height} or {*image_widths} != {width}
    # As many classes as the registers hold without spilling; see test_triton_compilation.py.
    most_classes = 256 if not return_scores else 64 if resized else 128
    block_k = min(power_of_2(classes, 16), most_classes)
    class_columns = cdiv(classes, block_k) * block_k
    columns = [columns_of(p.shape[0]) for p in probability]
    pixels = [x.shape[-2] * x.shape[-1] for x in (pixel_features or mask_embed)]
    elements = sum(p * c for p, c in zip(pixels, columns, strict=True))
    workspace = _Workspace(
        logits=first.new_empty(elements, dtype=torch.float32),
        parts=first.new_empty((2, sum(columns), class_columns), dtype=torch.float16),
        description=first.new_empty((views, FIELDS.value), dtype=torch.int64),
        ignored=first.new_empty(views, dtype=torch.float32),
    )
    frames = [
        *zip(padded_heights, padded_widths, image_heights, image_widths, flipped, strict=True)
    ]
    _prepare_views(workspace, probability, mask_embed, pixel_features, frames, block_k)
    tiles = cdiv(height, TILE.height) * cdiv(width, TILE.width)
    labels = first.new_empty((height, width), dtype=torch.int64)
    shape = (classes, height, width) if return_scores else (0,)
    scores = first.new_empty(shape, dtype=torch.float32)
    unsure = first.new_empty(tiles, dtype=torch.uint8)
    for in_full in (True,) if return_scores else (False, True):
        _launch_semantic(
            workspace,
            unsure,
            labels,
            scores,
            classes,
            SemanticVariant(in_full, return_scores, resized, resize_logits),
            block_k,
        )
    return labels, scores


def _prepare_views(
    workspace: _Workspace,
    probability: list[Tensor],
    mask_embed: list[Tensor],
    pixel_features: list[Tensor],
    frames: list[tuple[int, int, int, int, bool]],
    block_k: int,
) -> None:
    """Fill the workspace; arguments as for `semantic_segmentation`.

    `frames`: height and width of each view's input and of its image, and whether it is mirrored.
    """
    row, begin = 0, 0
    for view, p in enumerate(probability):
        mask_height, mask_width = (pixel_features or mask_embed)[view].shape[-2:]
        columns = columns_of(p.shape[0])
        input_height, input_width, image_height, image_width, flipped = frames[view]
        fields = View(
            first_chunk=begin // CHUNK,
            first_row=row,
            chunks=columns // CHUNK,
            mask_height=mask_height,
            mask_width=mask_width,
            input_height=input_height,
            input_width=input_width,
            image_height=image_height,
            image_width=image_width,
            flipped=int(flipped),
        )
        order = _prepare_view(p, workspace, view, fields, block_k)
        end = begin + mask_height * mask_width * columns
        logits_by_pixel(
            mask_embed[view],
            pixel_features[view] if pixel_features else None,
            order,
            workspace.logits[begin:end].view(mask_height * mask_width, columns),
        )
        row, begin = row + columns, end


def _prepare_view(
    probability: Tensor, workspace: _Workspace, view: int, fields: View, block_k: int
) -> Tensor:
    """Fill a view's part of the workspace but for the logits; returns its `order [columns]`."""
    queries, classes = probability.shape
    _, all_columns, class_columns = workspace.parts.shape
    columns, views = fields.chunks * CHUNK, len(workspace.ignored)
    bounds = probability.new_empty(queries, dtype=torch.float32)
    order = probability.new_empty(columns, dtype=torch.int32)
    p = probability.float()
    p = p if probability.stride(1) == 1 else p.contiguous()
    launcher.launch(
        bounds_kernel,
        (queries,),
        probability_ptr=p,
        bounds_ptr=bounds,
        classes=classes,
        probability_stride=p.stride(0),
        BLOCK=min(power_of_2(classes), 1024),
        num_warps=1,
    )
    launcher.launch(
        prepare_kernel,
        (columns,),
        probability_ptr=p,
        bounds_ptr=bounds,
        order_ptr=order,
        parts_ptr=workspace.parts,
        description_ptr=workspace.description[view],
        ignored_ptr=workspace.ignored[view:],
        sizes=PrepareSizes(queries, classes, p.stride(0), all_columns, class_columns),
        negligible=Negligible(together=IGNORED / views, single=NEGLIGIBLE / views),
        view=fields,
        BLOCK=PrepareBlock(queries=128, classes=block_k),
        num_warps=4,
    )
    return order


def _launch_semantic(
    workspace: _Workspace,
    unsure: Tensor,
    labels: Tensor,
    scores: Tensor,
    classes: int,
    variant: SemanticVariant,
    block_k: int,
) -> None:
    """Fill `labels [H, W]`, and `scores [K, H, W]` or, with the guess, `unsure [tiles]`."""
    _, all_columns, class_columns = workspace.parts.shape
    # 16 warps hide more of the latency, where their registers suffice.
    warps = 16 if block_k >= 128 and not variant.resized else 8
    launcher.launch(
        semantic_kernel,
        (len(unsure),),
        logits_ptr=workspace.logits,
        parts_ptr=workspace.parts,
        description_ptr=workspace.description,
        ignored_ptr=workspace.ignored,
        unsure_ptr=unsure,
        labels_ptr=labels,
        scores_ptr=scores,
        sizes=SemanticSizes(
            views=len(workspace.ignored),
            classes=classes,
            all_columns=all_columns,
            class_columns=class_columns,
            height=labels.shape[0],
            width=labels.shape[1],
        ),
        VARIANT=variant,
        TILE=TILE,
        BLOCK=SemanticBlock(
            classes=block_k,
            # Three products with 128 registers a thread: fewer queries at a time do not spill.
            queries=CHUNK // 2 if variant.in_full and warps == 16 else CHUNK,
        ),
        CHUNK=CHUNK,
        num_warps=warps,
        num_stages=2,
        maxnreg=128 if warps == 16 else 255,
    )


def panoptic_owners(
    scores: Tensor, mask_embed: Tensor, pixel_features: Tensor | None, *sizes: Any
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::panoptic_owners`, on one image.

    `scores [Q]`, negative for a query that is left out; masks as in `semantic_segmentation`;
    `sizes`: height and width of the padded input, of the image and of the result, and whether only
    queries of which the mask is at least 0.5 own a pixel. Returns `owners [H, W]`, int32, −1 for
    none, and `counts [Q, 3]`, int64: the pixels that a query owns, those where its mask is at least
    0.5, and those of `owners`.
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
        (cdiv(height, TILE.height) * cdiv(width, TILE.width),),
        logits_ptr=logits,
        order_ptr=order,
        weights_ptr=weights,
        kept_ptr=kept,
        owners_ptr=owners,
        counts_ptr=counts,
        sizes=OwnersSizes(columns, mask_height, mask_width, *sizes[:-1]),
        CONFIDENT_ONLY=confident_only,
        RESIZED=resized,
        TILE=TILE,
        # Of programs twice this size, some compilers of Triton's range spill a little.
        CHUNK=CHUNK // 2 if resized else CHUNK,
        num_warps=4 if resized else 8,
        num_stages=1,
    )
    return owners, counts
