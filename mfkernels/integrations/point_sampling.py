"""Matching cost and mask losses at sampled points (Mask2Former, §3.3), for logits `[B, Q, h, w]`.

Points are `[..., 2]` in 0..1, x before y, as a fraction of the image; values are bilinear and zero
outside of the image. The random numbers are those of the official code, in its order, so that a
seed gives the same points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.checks import result_dtype
from mfkernels.integrations.matching import Pair, as_pairs, check_mask_logits, class_index
from mfkernels.ops.common.registration import differentiable_once
from mfkernels.ops.focal_dice import focal_dice_loss
from mfkernels.ops.sample_points import reference, sample_points


class Sampling(NamedTuple):
    """How many points a mask loss takes, and where."""

    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """`[N, P]`: values of `maps [N, h, w]`, any dtype, at `points`; see `sample_points`."""
    if maps.dtype == torch.bool:
        return sample_points(maps, points)
    # Here maps come from memory, not from a cache, and `grid_sample` is the faster one.
    return reference.sample_points(maps.to(points.dtype), points)


@torch.no_grad()
def point_matching_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    masks: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_points: int,
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> Tensor:
    """`[B, Q, T]` of class, binary cross-entropy and dice cost; 0 beyond an image's own segments.

    All masks of an image share `num_points` uniformly random points. The cross-entropy of all pairs
    is one product, because it is linear in the target: `softplus(x) − x·t`.

    Args:
        class_logits: `[B, Q, K+1]`.
        mask_logits: `[B, Q, h, w]`.
        masks: per image `[T_b, H_b, W_b]`, any dtype.
        labels: per image `[T_b]`.
        num_points: P.
        class_weight, mask_weight, dice_weight: weights of the three terms.
    """
    check_mask_logits(mask_logits)
    device = mask_logits.device
    dtype = result_dtype(class_logits, mask_logits)
    with torch.autocast(device.type, enabled=False):
        probability = class_logits.to(dtype).softmax(-1)
        longest = max((len(label) for label in labels), default=0)
        costs = []
        for image, (mask, label) in enumerate(zip(masks, labels, strict=True)):
            points = torch.rand(1, num_points, 2, device=device).to(dtype)
            x = sample(mask_logits[image], points)
            t = sample(mask.to(device), points)
            overlap = x @ t.T
            # log(1 + exp(x)) in terms of operators that are vectorised.
            entropy = x.relu().sum(1) - x.abs().sigmoid_().log_().sum(1)
            s = x.sigmoid_()
            dice = 1 - (2 * (s @ t.T) + 1) / (s.sum(1)[:, None] + t.sum(1) + 1)
            cost = mask_weight * (entropy[:, None] - overlap) / num_points + dice_weight * dice
            cost -= class_weight * probability[image][:, class_index(label, probability).to(device)]
            costs.append(F.pad(cost, (0, longest - len(label))))
        return torch.stack(costs)


@torch.no_grad()
def uncertain_points(logits: Tensor, sampling: Sampling) -> Tensor:
    """`[N, P, 2]`: for each map of `logits [N, h, w]` the random points that are least certain.

    Of `oversample_ratio · P` uniformly random points the `importance_sample_ratio · P` with the
    smallest |logit| are kept; the others are fresh random points. They come in no particular order.
    """
    count, device = logits.shape[0], logits.device
    candidates = torch.rand(
        count, int(sampling.num_points * sampling.oversample_ratio), 2, device=device
    ).to(result_dtype(logits))
    values = sample(logits, candidates)
    chosen = int(sampling.importance_sample_ratio * sampling.num_points)
    index = values.abs_().topk(chosen, dim=1, largest=False, sorted=False).indices
    points = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    if chosen < sampling.num_points:
        fresh = torch.rand(count, sampling.num_points - chosen, 2, device=device)
        points = torch.cat((points, fresh.to(points.dtype)), dim=1)
    return points


def mask_losses(
    mask_logits: Tensor,
    masks: Sequence[Tensor],
    indices: Sequence[Pair],
    sampling: Sampling,
    *,
    unique: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over all matched masks of the binary cross-entropy (mean over points) and the dice loss.

    Args:
        mask_logits: `[B, Q, h, w]`.
        masks: per image `[T_b, H_b, W_b]`, any dtype. Images smaller than the largest stand for
            themselves padded right and below with zeros.
        indices: per image the matched queries and their segments.
        sampling: where the points are.
        unique: whether no segment of an image is matched twice, which saves copies of masks.

    Returns:
        Both 0-dim, float32 (float64 for float64 logits). Attached to the graph, differentiable
        once.
    """
    check_mask_logits(mask_logits)
    indices = as_pairs(indices)
    device = mask_logits.device
    flat = mask_logits.flatten(0, 1)  # rows of all images
    starts = range(0, len(flat), mask_logits.shape[1])
    rows = [query.to(device) + start for (query, _), start in zip(indices, starts, strict=True)]
    index = torch.cat(rows)
    points = uncertain_points(flat[index], sampling)
    size = [max(mask.shape[axis] for mask in masks) for axis in (2, 1)]
    per_image = zip(masks, indices, points.split([len(row) for row in rows]), strict=True)
    targets = [
        _target_values(mask.to(device), segment.to(device), where, size, unique)
        for mask, (_, segment), where in per_image
    ]
    loss_mask, loss_dice = _Losses.apply(flat, index, points, torch.cat(targets))
    return loss_mask, loss_dice


class _Losses(torch.autograd.Function):
    """The losses of rows `index [N]` of `logits [R, h, w]`; keeps nothing of size `[N, h, w]`."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, points: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, index, points, targets)
        return _losses(logits[index], points, targets)

    @staticmethod
    @differentiable_once("mask_losses")
    def backward(ctx: Any, grad_mask: Tensor, grad_dice: Tensor) -> tuple[Tensor, None, None, None]:
        logits, index, points, targets = ctx.saved_tensors
        rows = logits[index].requires_grad_()
        with torch.enable_grad():
            losses = _losses(rows, points, targets)
        (gradient,) = torch.autograd.grad(losses, rows, (grad_mask, grad_dice))
        # A query may be matched more than once.
        return torch.zeros_like(logits).index_add_(0, index, gradient), None, None, None


def _losses(rows: Tensor, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return focal_dice_loss(sample(rows, points), targets, 1.0, alpha=-1.0, gamma=0.0)


@torch.no_grad()
def _target_values(
    mask: Tensor, segment: Tensor, points: Tensor, size: list[int], unique: bool
) -> Tensor:
    """`[n, P]`: row i is the mask `segment[i]` at `points[i]`, fractions of `size`, (W, H)."""
    count, height, width = mask.shape
    if [width, height] != size:
        x, y = points.unbind(-1)
        points = torch.stack((x * (size[0] / width), y * (size[1] / height)), -1)
    if not unique or len(segment) < count:
        return sample(mask[segment], points)
    # Points are far smaller than masks: they are brought into the order of the masks, and back.
    return sample(mask, points[segment.argsort()])[segment]
