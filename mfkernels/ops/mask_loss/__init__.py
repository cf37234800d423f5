"""Focal and dice loss of matched masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import (
    check_device,
    check_focal,
    check_masks,
    check_targets,
    native_problem,
    result_dtype,
)
from mfkernels.ops.common import operator_checks
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
    """Focal and dice loss of the matched masks at target size (MaskFormer, §3.2, appendix A).

    For every matched segment the logits are upsampled bilinearly (`align_corners=False`) to the
    size of the targets; the focal loss is a mean over pixels, the dice loss is smoothed by +1 above
    and below. Both are summed over the segments and divided by `num_masks`. Computed in float32
    (float64 if an input is), under autocast too. Differentiable once.

    Args:
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`; or mask logits `[L, B, Q, h, w]` or `[B, Q, h,
            w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        targets: the segments of the B images.
        assignment: `[L, B, T]` (or `[B, T]`) int64: the query of each segment, or −1 for none, as
            `batch_linear_assignment(cost.mT, row_counts=targets.counts_tensor())` gives it.
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
        raise ValueError(
            f"assignment must be {expected}, the query of each segment, "
            f"got {list(assignment.shape)}"
        )
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
    layered = assignment if masks.had_layers else assignment[None]
    with torch.autocast(mask_embed.device.type, enabled=False):
        problem = native_problem(masks.embed, masks.features)
        if backend.select("mask_loss", mask_embed.device, problem) == "native":
            focal, dice, _ = torch.ops.mfkernels.mask_loss(
                masks.embed,
                masks.features,
                targets.label_map,
                targets.masks,
                targets.counts_tensor(),
                layered,
                alpha,
                gamma,
            )
            losses = torch.stack((focal, dice)).sum((2, 3)) / num_masks
            loss_mask, loss_dice = losses.unbind()
        else:
            loss_mask, loss_dice = reference.mask_loss(
                masks.embed, masks.features, targets, layered, num_masks, alpha, gamma
            )
    return (loss_mask, loss_dice) if masks.had_layers else (loss_mask[0], loss_dice[0])


def _fake(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    operator_checks.mask_loss(
        mask_embed, pixel_features, label_map, masks, counts, assignment, alpha, gamma
    )
    dtype = result_dtype(mask_embed, pixel_features)
    losses = [assignment.new_empty(assignment.shape, dtype=dtype) for _ in range(2)]
    return losses[0], losses[1], assignment.new_empty((*assignment.shape, 3), dtype=dtype)


def _fake_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
    embed_needed: bool,
    features_needed: bool,
) -> tuple[Tensor, Tensor]:
    operator_checks.mask_loss_backward(
        grad_focal,
        grad_dice,
        sums,
        mask_embed,
        pixel_features,
        label_map,
        masks,
        counts,
        assignment,
        alpha,
        gamma,
        embed_needed,
        features_needed,
    )
    embed = mask_embed.new_empty(mask_embed.shape if embed_needed else (0,))
    features = mask_embed if pixel_features is None else pixel_features
    return embed, features.new_empty(features.shape if features_needed else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_focal: Tensor | None, grad_dice: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("mask_loss can be differentiated only once (create_graph=True)")
    sums, *tensors = ctx.saved_tensors
    if grad_focal is None:
        grad_focal = torch.zeros_like(sums[..., 0])
    if grad_dice is None:
        grad_dice = torch.zeros_like(sums[..., 0])
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.mfkernels.mask_loss_backward(
        grad_focal, grad_dice, sums, *tensors, ctx.alpha, ctx.gamma, *needed
    )
    used = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
    return (*used, *[None] * 6)


if hasattr(torch.ops.mfkernels, "mask_loss"):
    torch.library.register_fake("mfkernels::mask_loss", _fake)
    torch.library.register_fake("mfkernels::mask_loss_backward", _fake_backward)
    torch.library.register_autograd("mfkernels::mask_loss", _backward, setup_context=_setup_context)
