"""Sigmoid focal loss and dice loss of logits that are already there."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.mask_logits import check_device, check_floating
from mfkernels.matching_cost import check_focal
from mfkernels.reference import focal_dice as reference
from mfkernels.reference.mask_logits import at_least_float32


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """Focal loss with `torchvision.ops.sigmoid_focal_loss`'s contract (Lin et al. 2017, eq. 5).

    Args:
        logits: any shape, any floating-point dtype (half precision is computed in float32).
        targets: same shape, bool or numbers from 0 to 1.
        alpha: weight of the positives; negative: no weighting.
        gamma: exponent, at least 0.
        reduction: `"none"` (each element), `"mean"` or `"sum"`.

    Returns:
        In the dtype of `logits`: its shape, or 0-dim when reduced. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    _check_pair(logits, targets, alpha, gamma)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    backend.select("focal_dice", logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        wide = at_least_float32(logits)
        loss = reference.sigmoid_focal_loss(wide, targets.to(wide.dtype), alpha, gamma)
        if reduction == "mean":
            loss = loss.mean()
        elif reduction == "sum":
            loss = loss.sum()
    return loss.to(logits.dtype)


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float | Tensor | None = None) -> Tensor:
    """Dice loss, smoothed by +1 above and below, summed over masks and divided by `num_masks`.

    Args:
        logits: `[M, ...]`, any floating-point dtype.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor. None: M, at least 1.

    Returns:
        0-dim, float32 (float64 for float64 inputs). Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit.
    """
    return focal_dice_loss(logits, targets, num_masks)[1]


def focal_dice_loss(
    logits: Tensor,
    targets: Tensor,
    num_masks: float | Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """The two mask losses of the official criterion, for logits at the size of the targets.

    The focal loss is a mean over the elements of each mask; both are summed over masks and divided
    by `num_masks`. Sampled points (Mask2Former) go through here as `[M, P]`.

    Args:
        logits: `[M, ...]`, any floating-point dtype.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor. None: M, at least 1.
        alpha: weight of the positives in the focal loss; negative: no weighting.
        gamma: exponent of the focal loss, at least 0.

    Returns:
        `loss_mask` and `loss_dice`, 0-dim, float32 (float64 for float64 inputs). Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    _check_pair(logits, targets, alpha, gamma)
    if logits.ndim < 2 or 0 in logits.shape[1:]:
        raise ValueError(
            f"logits must be [M, ...] with at least one element a mask, got {list(logits.shape)}"
        )
    backend.select("focal_dice", logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        rows = at_least_float32(logits).flatten(1)
        focal, dice = reference.focal_dice_loss(
            rows, targets.to(rows.dtype).flatten(1), alpha, gamma
        )
        divisor = max(logits.shape[0], 1) if num_masks is None else num_masks
        return focal.sum() / divisor, dice.sum() / divisor


def _check_pair(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> None:
    check_floating("logits", logits)
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {list(logits.shape)}, "
            f"got {list(targets.shape)}"
        )
    check_device("targets", targets, logits.device)
    check_focal(alpha, gamma)
