"""Sigmoid focal loss and dice loss, with the operations in the order of the official code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.common.logits import at_least_float32
from mfkernels.ops.sample_points.reference import gathered_points, sample_points

Number = float | Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: Number, gamma: Number) -> Tensor:
    """The loss of each element, in the shape of `logits`. With a negative `alpha`, unweighted."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # Adding 0 * logits makes the loss NaN at every infinite logit, where cross-entropy alone is
    # either NaN or infinite (docs/not_finite.md). Not `torch.add(..., alpha=0)`, which crashes the
    # process inside `torch.func.linearize`.
    cross_entropy = cross_entropy + 0 * logits.detach()
    loss = cross_entropy
    if isinstance(gamma, Tensor) or gamma != 0:
        probability = logits.sigmoid()
        p_t = probability * targets + (1 - probability) * (1 - targets)
        base = 1 - p_t  # of the modulating factor
        if isinstance(gamma, Tensor) or gamma < 1:
            # At base 0, the derivative of base**gamma is infinite, while that of the loss is 0.
            base = base + torch.finfo(base.dtype).tiny
        loss = cross_entropy * base**gamma
    if not isinstance(alpha, Tensor) and alpha < 0:
        return loss
    weighted = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return torch.where(alpha >= 0, weighted, loss) if isinstance(alpha, Tensor) else weighted


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss `[M]` of each row of `[M, P]`, with 1 added to numerator and denominator."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(1) + 1
    return 1 - overlap / (probability.sum(1) + targets.sum(1) + 1)


def focal_dice_loss(
    logits: Tensor, targets: Tensor, alpha: Number, gamma: Number
) -> tuple[Tensor, Tensor]:
    """Focal loss (mean over P) and dice loss, each `[M]`, of each row of `[M, P]`."""
    focal = sigmoid_focal_loss(logits, targets, alpha, gamma).mean(1)
    return focal, dice_loss(logits, targets)


def sample_pair(logits: Tensor, targets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (at least float32) and targets at `points [M, P, 2]`, each `[M, P]`."""
    sampled = sample_points(at_least_float32(logits), points)
    return sampled, sample_points(targets.to(sampled.dtype), points)


def gathered_point_loss(
    logits: Tensor, targets: Tensor, points: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """`focal_dice_loss` of logits and targets at points, twice differentiable: `[M]` and `[M]`."""
    values = gathered_points(at_least_float32(logits), points)
    return focal_dice_loss(values, gathered_points(targets, points), alpha, gamma)
