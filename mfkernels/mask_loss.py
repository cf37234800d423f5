"""Focal and dice loss of matched masks."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.mask_logits import check_device, check_masks, check_targets
from mfkernels.matching_cost import check_focal
from mfkernels.reference import mask_loss as reference
from mfkernels.targets import SegmentTargets, holds_values


def mask_loss(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    targets: SegmentTargets,
    assignment: Tensor,
    *,
    num_masks: float | Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of the matched masks at target size (MaskFormer, §3.2, appendix A).

    For every matched segment the logits are upsampled bilinearly (`align_corners=False`) to the
    size of the
    targets; the focal loss is a mean over pixels, the dice loss is smoothed by +1 above and below.
    Both are
    summed over the segments and divided by `num_masks`. Computed in float32 (float64 if an input
    is), under
    autocast too. Differentiable once.

    Args:
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`; or mask logits `[L, B, Q, h, w]` or `[B, Q, h,
            w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        targets: the segments of the B images.
        assignment: `[L, B, T]` (or `[B, T]`) int64: the query of each segment, or −1 for none.
        num_masks: the divisor, a number or a 0-dim tensor. None: the number of segments, at least
            1.
        alpha: weight of the positives in the focal loss; negative: no weighting.
        gamma: exponent of the focal loss, at least 0.

    Returns:
        `loss_mask` and `loss_dice`, each `[L]` (or 0-dim). Without any segment they are zeros that
        are still
        attached to the graph.

    Raises:
        TypeError, ValueError: a dtype, shape, device, `alpha` or `gamma` does not fit, or (checked
            on the CPU
            only) an assignment outside `[-1, Q)`.
    """
    masks = check_masks(mask_embed, pixel_features)
    check_targets(targets, masks)
    check_focal(alpha, gamma)
    layers, images, queries = masks.embed.shape[:3]
    expected = ([layers] if masks.had_layers else []) + [images, targets.max_count]
    if assignment.dtype != torch.int64:
        raise TypeError(f"assignment must be torch.int64, got {assignment.dtype}")
    if list(assignment.shape) != expected:
        raise ValueError(f"assignment must be {expected}, got {list(assignment.shape)}")
    check_device("assignment", assignment, mask_embed.device)
    if assignment.numel() and holds_values(assignment):
        low, high = int(assignment.min()), int(assignment.max())
        if low < -1 or high >= queries:
            raise ValueError(
                f"assignment must hold query indices in 0..{queries - 1}, or −1 for none; "
                f"got {low if low < -1 else high}"
            )
    if num_masks is None:
        num_masks = max(targets.num_segments, 1)
    elif isinstance(num_masks, Tensor) and num_masks.ndim > 0:
        raise ValueError(f"num_masks must be a number or 0-dim, got {list(num_masks.shape)}")
    backend.select("mask_loss", mask_embed.device)
    with torch.autocast(mask_embed.device.type, enabled=False):
        loss_mask, loss_dice = reference.mask_loss(
            masks.embed,
            masks.features,
            targets,
            assignment if masks.had_layers else assignment[None],
            num_masks,
            alpha,
            gamma,
        )
    return (loss_mask, loss_dice) if masks.had_layers else (loss_mask[0], loss_dice[0])
