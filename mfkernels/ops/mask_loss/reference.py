"""Focal and dice loss of the matched masks at target resolution, as in the official code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.checks import usable_by_autograd
from mfkernels.ops.common.logits import at_least_float32, logits_of_image
from mfkernels.ops.common.recomputation import recomputed
from mfkernels.ops.focal_dice.reference import focal_dice_loss
from mfkernels.targets import SegmentTargets

PIXELS_AT_ONCE = 1 << 20
"""Full-resolution temporaries hold about this many elements, so that they roughly fit the cache."""


def upsampled_losses(
    logits: Tensor, masks: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss, each `[M]`, of logits `[M, h, w]`, upsampled to masks `[M, H, W]`."""
    size = masks.shape[-2:]
    upsampled = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return focal_dice_loss(upsampled.flatten(1), masks.flatten(1).to(logits.dtype), alpha, gamma)


def losses_in_chunks(
    logits: Tensor, masks: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """`upsampled_losses` in chunks of masks, recomputed in the backward pass.

    The masks are the only full-resolution tensors that are kept for the backward pass.
    """
    chunk = max(1, PIXELS_AT_ONCE // masks[0].numel())
    chunks = zip(logits.split(chunk), masks.split(chunk), strict=True)
    losses = [recomputed(upsampled_losses, x, y, alpha, gamma) for x, y in chunks]
    focal, dice = (torch.cat(parts) for parts in zip(*losses, strict=True))
    return focal, dice


def losses_of_segments(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    targets: SegmentTargets,
    assignment: Tensor,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss `[L, B, T]` of the segments; 0 where none is matched."""
    # Sums over empty slices: they attach the losses to the graph, so that a batch without segments
    # has gradients of 0 instead of None.
    zero = at_least_float32(mask_embed[..., :0]).sum()
    if pixel_features is not None:
        zero = zero + at_least_float32(pixel_features[..., :0]).sum()
    layers, images = mask_embed.shape[:2]
    zeros = zero.expand(layers, targets.max_count)
    layer_index = torch.arange(layers, device=mask_embed.device)[:, None]
    features = [None] * images if pixel_features is None else pixel_features.unbind()
    per_image: list[tuple[Tensor, Tensor]] = []
    for image, rows in enumerate(mask_embed.unbind(1)):
        count = targets.counts[image]
        if count == 0 or layers == 0:
            per_image.append((zeros, zeros))
            continue
        masks = usable_by_autograd(targets.dense_masks(image))
        query = assignment[:, image, :count]
        matched = query >= 0
        chosen = rows[layer_index, query.clamp(min=0)]
        # An unmatched segment is computed with zeros, so that no query receives a gradient for it.
        chosen = chosen.where(matched.reshape(matched.shape + (1,) * (chosen.ndim - 2)), 0)
        logits = logits_of_image(chosen, features[image])
        # Infinite logits become NaN; interpolation alone might give infinity or NaN.
        logits = logits + 0 * logits
        losses = [losses_in_chunks(x, masks, alpha, gamma) for x in logits]
        focal, dice = (torch.stack(parts).where(matched, 0) for parts in zip(*losses, strict=True))
        padding = (0, targets.max_count - count)
        per_image.append((F.pad(focal, padding), F.pad(dice, padding)))
    if not per_image:
        return zeros[:, None][:, :0], zeros[:, None][:, :0]
    focal, dice = (torch.stack(parts, 1) for parts in zip(*per_image, strict=True))
    return focal + zero, dice + zero


def mask_loss(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    targets: SegmentTargets,
    assignment: Tensor,
    num_masks: float | Tensor,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """`loss_mask [L]` and `loss_dice [L]`: sums over matched segments, divided by `num_masks`."""
    focal, dice = losses_of_segments(mask_embed, pixel_features, targets, assignment, alpha, gamma)
    return focal.sum((1, 2)) / num_masks, dice.sum((1, 2)) / num_masks
