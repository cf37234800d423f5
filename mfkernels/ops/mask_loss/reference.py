"""Focal and dice loss of the matched masks at target resolution, as in the official code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.common.logits import at_least_float32, logits_of_image
from mfkernels.ops.common.registration import differentiable_once
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


class _UpsampledLosses(torch.autograd.Function):
    """`upsampled_losses`, a chunk of masks at a time; saves nothing of full size for backward.

    The loss of a mask depends on its own logits only, so the gradient of each sum holds that of
    each loss.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, masks: Tensor, alpha: float, gamma: float
    ) -> tuple[Tensor, Tensor]:
        chunk = max(1, PIXELS_AT_ONCE // masks[0].numel())
        losses: list[tuple[Tensor, Tensor]] = []
        gradients: list[tuple[Tensor, Tensor]] = []
        for chunk_logits, chunk_masks in zip(logits.split(chunk), masks.split(chunk), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = chunk_logits.detach().requires_grad_(ctx.needs_input_grad[0])
                focal, dice = upsampled_losses(leaf, chunk_masks, alpha, gamma)
                if ctx.needs_input_grad[0]:
                    (of_focal,) = torch.autograd.grad(focal.sum(), leaf, retain_graph=True)
                    (of_dice,) = torch.autograd.grad(dice.sum(), leaf)
                    gradients.append((of_focal, of_dice))
            losses.append((focal.detach(), dice.detach()))
        if gradients:
            ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        focal, dice = (torch.cat(parts) for parts in zip(*losses, strict=True))
        return focal, dice

    @staticmethod
    @differentiable_once("mask_loss")
    def backward(
        ctx: Any, grad_focal: Tensor, grad_dice: Tensor
    ) -> tuple[Tensor, None, None, None]:
        of_focal, of_dice = ctx.saved_tensors
        gradient = grad_focal[:, None, None] * of_focal + grad_dice[:, None, None] * of_dice
        return gradient, None, None, None


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
    # Sums of nothing: without any segment the losses are 0 and the gradients 0 instead of None.
    zero = at_least_float32(mask_embed[..., :0]).flatten(1).sum(1)
    if pixel_features is not None:
        zero = zero + at_least_float32(pixel_features[..., :0]).sum()
    layers, images = mask_embed.shape[:2]
    layer_index = torch.arange(layers, device=mask_embed.device)[:, None]
    features = [None] * images if pixel_features is None else pixel_features.unbind()
    totals: list[tuple[Tensor, Tensor]] = [(zero, zero)]
    for image, rows in enumerate(mask_embed.unbind(1)):
        if targets.counts[image] == 0 or layers == 0:
            continue
        masks = targets.dense_masks(image)
        query = assignment[:, image, : targets.counts[image]]
        matched = query >= 0
        chosen = rows[layer_index, query.clamp(min=0)]
        # An unmatched segment borrows query 0; zeros keep that query's values out of the gradient.
        chosen = chosen.where(matched.reshape(matched.shape + (1,) * (chosen.ndim - 2)), 0)
        logits = logits_of_image(chosen, features[image])
        losses = [_UpsampledLosses.apply(x, masks, alpha, gamma) for x in logits]
        focal, dice = (torch.stack(parts) for parts in zip(*losses, strict=True))
        totals.append((focal.where(matched, 0).sum(1), dice.where(matched, 0).sum(1)))
    loss_mask, loss_dice = (
        torch.stack(parts).sum(0) / num_masks for parts in zip(*totals, strict=True)
    )
    return loss_mask, loss_dice
