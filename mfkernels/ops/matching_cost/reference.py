"""Matching costs, one image and layer at a time, in the order of the official code."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.checks import result_dtype
from mfkernels.ops.common.logits import logits_of_image
from mfkernels.targets import SegmentTargets


def matching_cost(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    targets: SegmentTargets,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    alpha: float,
    gamma: float,
) -> Tensor:
    """The cost `[L, B, Q, T]`; 0 beyond an image's own segments, NaN for a label out of range."""
    layers, images = class_logits.shape[:2]
    size = (mask_embed if pixel_features is None else pixel_features).shape[-2:]
    dtype = result_dtype(class_logits, mask_embed, pixel_features)
    probability = class_logits.to(dtype).softmax(-1)
    if layers * images == 0:
        return probability.new_zeros(layers, images, class_logits.shape[2], targets.max_count)
    costs: list[Tensor] = []
    classes = class_logits.shape[-1] - 1
    for image, (count, offset) in enumerate(zip(targets.counts, targets.offsets, strict=True)):
        if count == 0:
            costs += [probability.new_zeros(class_logits.shape[2], targets.max_count)] * layers
            continue
        labels = targets.labels[offset : offset + count]
        is_valid = (labels >= 0) & (labels < classes)
        label_probability = probability[:, image, :, labels.clamp(0, classes - 1)].where(
            is_valid, torch.nan
        )
        masks = nearest_masks(targets, image, size).flatten(1)
        for layer in range(layers):
            features = None if pixel_features is None else pixel_features[image]
            logits = logits_of_image(mask_embed[layer, image].to(dtype), features).flatten(1)
            focal = focal_cost(logits, masks.to(logits.dtype), alpha, gamma)
            dice = dice_cost(logits, masks.to(logits.dtype))
            cost = (
                mask_weight * focal - class_weight * label_probability[layer] + dice_weight * dice
            )
            costs.append(F.pad(cost, (0, targets.max_count - count)))
    return torch.stack(costs).unflatten(0, (images, layers)).transpose(0, 1).contiguous()


def focal_cost(logits: Tensor, masks: Tensor, alpha: float, gamma: float) -> Tensor:
    """The mean focal loss `[Q, T]` over pixels of logits `[Q, P]` against masks `[T, P]`."""
    probability = logits.sigmoid()
    cross_entropy = functools.partial(F.binary_cross_entropy_with_logits, logits, reduction="none")
    positive = (1 - probability) ** gamma * cross_entropy(torch.ones_like(logits))
    negative = probability**gamma * cross_entropy(torch.zeros_like(logits))
    if alpha >= 0:
        positive, negative = alpha * positive, (1 - alpha) * negative
    inside = torch.einsum("qp,tp->qt", positive, masks)
    outside = torch.einsum("qp,tp->qt", negative, 1 - masks)
    return (inside + outside) / logits.shape[1]


def dice_cost(logits: Tensor, masks: Tensor) -> Tensor:
    """The dice loss `[Q, T]` of logits `[Q, P]` against masks `[T, P]`.

    1 is added to numerator and denominator.
    """
    probability = logits.sigmoid()
    overlap = 2 * torch.einsum("qp,tp->qt", probability, masks) + 1
    return 1 - overlap / (probability.sum(1)[:, None] + masks.sum(1) + 1)


def nearest_masks(targets: SegmentTargets, image: int, size: Sequence[int]) -> Tensor:
    """Masks `[T_b, h, w]` bool of one image, subsampled as `F.interpolate(mode="nearest")` does.

    Always in float32, because the precision of the scale decides which pixel is the nearest.
    """
    if targets.label_map is None:
        masks = targets.dense_masks(image)[:, None].float()
        return F.interpolate(masks, size, mode="nearest")[:, 0].bool()
    label_map = targets.label_map[image][None, None].float()
    segments = torch.arange(targets.counts[image], device=targets.device)
    return F.interpolate(label_map, size, mode="nearest")[0] == segments[:, None, None]
