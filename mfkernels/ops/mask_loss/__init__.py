"""Focal and dice losses of matched masks."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.mask_loss.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import (
    MaskPredictions,
    check_device,
    check_focal,
    check_num_masks,
    check_predictions,
    check_targets,
    native_problem,
    usable_by_autograd,
    without_autocast,
)
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.mask_loss import reference
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
    """Compute the focal and dice losses of matched masks at target size (MaskFormer, §3.3).

    The mask logits of each matched segment are upsampled bilinearly (`align_corners=False`) to the
    size of the targets. The focal loss is a mean over pixels; the dice loss has +1 in numerator and
    denominator. Both are summed over the segments and divided by `num_masks`. Computed in float32
    (float64 if an input is float64), also under autocast.

    Args:
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`; or mask logits `[L, B, Q, h, w]` or
            `[B, Q, h, w]`. Any floating-point dtype.
        pixel_features: `[B, C, h, w]`, any floating-point dtype; None for mask logits.
        targets: the segments of the B images.
        assignment: `[L, B, T]` (or `[B, T]`) int64, the query of each segment, or −1 for none:
            the result of `batch_linear_assignment(cost.mT, row_counts=targets.counts_tensor())`.
        num_masks: the divisor, positive, a number or a 0-dim tensor. None: the number of segments,
            at least 1.
        alpha: weight of the positives in the focal loss, at most 1. Negative: no weighting.
        gamma: exponent of the focal loss, at least 0.

    Returns:
        `loss_mask` and `loss_dice`, each `[L]` (or 0-dim), float32 or float64. Differentiable;
        without any segment, they are zeros that are still attached to the graph.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value is wrong. Indices of the assignment
            outside `[-1, Q)` are detected on the CPU only.
    """
    predictions = check_predictions(mask_embed, pixel_features)
    check_targets(targets, predictions)
    check_focal(alpha, gamma)
    _check_assignment(assignment, predictions, targets)
    if num_masks is None:
        num_masks = max(targets.num_segments, 1)
    else:
        check_num_masks(num_masks)
    layered = assignment if predictions.had_layers else assignment[None]
    if isinstance(num_masks, Tensor):
        num_masks = usable_by_autograd(num_masks)
    with without_autocast(predictions.embed.device):
        segment_losses = segment_losses_unchecked(predictions, targets, layered, alpha, gamma)
        # Stacked, so that one sum and one division serve both: each operator is a launch on a GPU.
        losses = torch.stack(segment_losses).sum((2, 3)) / num_masks
        # `unsafe_split`, as official code weights the losses in place.
        loss_mask, loss_dice = losses.unsafe_split(1)
        axes = 0 if predictions.had_layers else (0, 1)
        return loss_mask.squeeze(axes), loss_dice.squeeze(axes)


@served_by_pytorch_where_kernels_fail("mask_loss")
def segment_losses_unchecked(
    predictions: MaskPredictions,
    targets: SegmentTargets,
    assignment: Tensor,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """Compute both losses `[L, B, T]` of checked arguments; 0 for a segment without a query."""
    embed, features = predictions.embed, predictions.features
    with without_autocast(embed.device):
        problem = native_problem(embed, features)
        if backend.select("mask_loss", embed.device, problem) != "native":
            return reference.losses_of_segments(embed, features, targets, assignment, alpha, gamma)
        inputs = (embed,) if features is None else (embed, features)
        keep_maps = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        focal, dice, *_ = torch.ops.mfkernels.mask_loss(
            embed,
            features,
            targets.label_map,
            targets.masks,
            targets.counts_tensor(),
            assignment,
            targets.num_segments,
            alpha,
            gamma,
            keep_maps,
        )
        return focal, dice


def _check_assignment(
    assignment: Tensor, predictions: MaskPredictions, targets: SegmentTargets
) -> None:
    layers, images, queries = predictions.embed.shape[:3]
    expected = ([layers] if predictions.had_layers else []) + [images, targets.max_count]
    if assignment.dtype != torch.int64:
        raise TypeError(f"assignment must be torch.int64, got {assignment.dtype}")
    if list(assignment.shape) != expected:
        raise ValueError(
            f"assignment must be {expected}, the query of each segment, "
            f"got {list(assignment.shape)}"
        )
    check_device("assignment", assignment, predictions.embed.device)
    if assignment.numel() and holds_values(assignment):
        low, high = int(assignment.min()), int(assignment.max())
        if low < -1 or high >= queries:
            raise ValueError(
                f"assignment must hold query indices in 0..{queries - 1}, or −1 for none; "
                f"got {low if low < -1 else high}"
            )
