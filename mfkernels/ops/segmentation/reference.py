"""Semantic and panoptic inference, one image at a time, in the order of the official code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.common.logits import logits_of_image

Size = tuple[int, int]

MAX_LOGIT = 1e30
"""The value that replaces infinite logits: interpolation may multiply infinity by a weight of zero,
which is NaN."""


def finite_logits(rows: Tensor, features: Tensor | None) -> Tensor:
    """`logits_of_image` with NaN and infinity replaced; see docs/not_finite.md.

    Infinite dense logits become large ones of the same sign. NaN, and any logit computed from
    embeddings and features that is not finite, becomes a large negative one: not in the mask.
    """
    logits = logits_of_image(rows, features)
    infinite = MAX_LOGIT if features is None else -MAX_LOGIT
    return logits.nan_to_num(-MAX_LOGIT, infinite, -MAX_LOGIT).clamp_(-MAX_LOGIT, MAX_LOGIT)


def resize(maps: Tensor, size: Size) -> Tensor:
    """Resize `[N, h, w]` to `[N, H, W]`, bilinearly with `align_corners=False`."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def crop(maps: Tensor, size: Size) -> Tensor:
    return maps[:, : size[0], : size[1]]


def resize_twice(maps: Tensor, input_size: Size, image_size: Size, size: Size) -> Tensor:
    """Resize to the padded input, crop to the image inside it, and resize to the result."""
    return resize(crop(resize(maps, input_size), image_size), size)


def semantic_scores(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    input_size: Size,
    image_size: Size,
    size: Size,
    resize_logits: bool,
    flipped: bool = False,
) -> Tensor:
    """The scores `[K, H, W]` of one image from class logits `[Q, K+1]` and mask logits `[Q, h, w]`.

    Args:
        input_size: the size of the padded network input, to which the logits are upsampled first.
        image_size: the size of the image, the upper left part of the input.
        size: the size of the result.
        resize_logits: resize the logits to `size` and compute the scores there, as the official
            panoptic models do. Otherwise, as the semantic models do, compute the scores at the
            input size and resize them.
        flipped: the image was flipped left to right; the scores are flipped back.
    """
    dtype = torch.promote_types(class_logits.dtype, mask_logits.dtype)
    probability = class_logits.to(dtype).softmax(-1)[:, :-1]
    masks = mask_logits.to(dtype)
    if resize_logits:
        masks = resize_twice(masks, input_size, image_size, size).sigmoid()
        scores = torch.einsum("qk,qhw->khw", probability, masks)
    else:
        masks = resize(masks, input_size).sigmoid()
        scores = torch.einsum("qk,qhw->khw", probability, masks)
        scores = resize(crop(scores, image_size), size)
    return scores.flip(-1) if flipped else scores


def panoptic_map(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    input_size: Size,
    image_size: Size,
    size: Size,
    thing_classes: frozenset[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    confident_only: bool,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The panoptic map `[H, W]` int32 of one image and the list of its segments.

    `confident_only`: of the pixels that a query owns, paint only those where its mask is at least
    0.5 (Mask2Former), otherwise all (MaskFormer). The other arguments are those of
    `mfkernels.panoptic_segmentation`.
    """
    dtype = torch.promote_types(class_logits.dtype, mask_logits.dtype)
    scores, labels = class_logits.to(dtype).softmax(-1).max(-1)
    kept = (labels != class_logits.shape[1] - 1) & (scores > object_mask_threshold)
    panoptic = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    segments: list[dict[str, Any]] = []
    if not kept.any():
        return panoptic, segments
    masks = resize_twice(mask_logits[kept].to(dtype), input_size, image_size, size).sigmoid()
    owner = (scores[kept][:, None, None] * masks).argmax(0)
    stuff_ids: dict[int, int] = {}
    for index, (label, score) in enumerate(
        zip(labels[kept].tolist(), scores[kept].tolist(), strict=True)
    ):
        owned = owner == index
        confident = masks[index] >= 0.5
        area, original_area = int(owned.sum()), int(confident.sum())
        painted = owned & confident if confident_only else owned
        if original_area == 0 or not painted.any() or area / original_area < overlap_threshold:
            continue
        if label in stuff_ids:
            panoptic[painted] = stuff_ids[label]
            continue
        segment_id = len(segments) + 1
        panoptic[painted] = segment_id
        is_thing = label in thing_classes
        if not is_thing:
            stuff_ids[label] = segment_id
        segments.append(
            {"id": segment_id, "isthing": is_thing, "category_id": label, "score": score}
        )
    return panoptic, segments
