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
"""Full-resolution temporaries hold about this many elements, so that they stay near the cache."""


def upsampled_losses(
    logits: Tensor, masks: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """`[M]` and `[M]`: losses of `[M, h, w]` logits, upsampled, against `[M, H, W]` masks."""
    size = masks.shape[-2:]
    upsampled = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return focal_dice_loss(upsampled.flatten(1), masks.flatten(1).to(logits.dtype), alpha, gamma)


def losses_in_chunks(
    logits: Tensor, masks: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """`upsampled_losses`, a chunk of masks at a time; keeps of full size only the masks."""
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
    # Sums of nothing: without any segment the losses are 0 and the gradients 0 instead of None.
    zero = at_least_float32(mask_embed[..., :0]).sum()
    if pixel_features is not None:
        zero = zero + at_least_float32(pixel_features[..., :0]).sum()
    layers, images = mask_embed.shape[:2]
    nothing = zero.expand(layers, targets.max_count)
    layer_index = torch.arange(layers, device=mask_embed.device)[:, None]
    features = [None] * images if pixel_features is None else pixel_features.unbind()
    of_images: list[tuple[Tensor, Tensor]] = []
    for image, rows in enumerate(mask_embed.unbind(1)):
        count = targets.counts[image]
        if count == 0 or layers == 0:
            of_images.append((nothing, nothing))
            continue
        masks = usable_by_autograd(targets.dense_masks(image))
        query = assignment[:, image, :count]
        matched = query >= 0
        chosen = rows[layer_index, query.clamp(min=0)]
        # An unmatched segment borrows query 0; zeros keep that query's values out of the gradient.
        chosen = chosen.where(matched.reshape(matched.shape + (1,) * (chosen.ndim - 2)), 0)
        logits = logits_of_image(chosen, features[image])
        # An infinity becomes NaN, whatever weights interpolation gives it.
        logits = logits + 0 * logits
        losses = [losses_in_chunks(x, masks, alpha, gamma) for x in logits]
        focal, dice = (torch.stack(parts).where(matched, 0) for parts in zip(*losses, strict=True))
        absent = (0, targets.max_count - count)
        of_images.append((F.pad(focal, absent), F.pad(dice, absent)))
    if not of_images:
        return nothing[:, None][:, :0], nothing[:, None][:, :0]
    focal, dice = (torch.stack(parts, 1) for parts in zip(*of_images, strict=True))
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
