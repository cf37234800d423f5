"""Matching cost and mask losses at sampled points (Mask2Former, §3.3), for logits `[B, Q, h, w]`.

Points are `[..., 2]`, x and y, in 0..1 as fractions of the image. Values are interpolated
bilinearly and are zero outside the image. Random numbers are drawn in the order of the official
code, so a seed gives the same points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.checks import result_dtype, without_autocast
from mfkernels.integrations.matching import (
    Pair,
    as_pairs,
    check_mask_logits,
    check_matched,
    class_index,
)
from mfkernels.ops.common.recomputation import recomputed
from mfkernels.ops.focal_dice import focal_dice_loss
from mfkernels.ops.sample_points import reference, sample_points


class Sampling(NamedTuple):
    """How many points a mask loss uses, and how they are chosen."""

    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Sample `maps [N, h, w]` of any dtype at `points`: `[N, P]`; see `sample_points`."""
    if maps.dtype == torch.bool:
        return sample_points(maps, points)
    # `grid_sample` is faster than the kernel here, because the maps are not in the cache.
    return reference.sample_finite_points(maps.to(points.dtype), points)


def _uniform(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Draw random points `[*shape, 2]`, at least float32 whatever the default dtype is."""
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.rand(*shape, 2, dtype=dtype, device=device)


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
    """Compute class, binary cross-entropy and dice cost at random points.

    All masks of an image share `num_points` uniformly random points. The cross-entropy is linear in
    the target: `log(1 + exp(−|x|)) + relu(x)·(1 − t) + relu(−x)·t`.

    Args:
        class_logits: `[B, Q, K+1]`.
        mask_logits: `[B, Q, h, w]`.
        masks: for each image, `[T_b, H_b, W_b]` of any dtype.
        labels: for each image, `[T_b]`.
        num_points: P, the number of points per image.
        class_weight, mask_weight, dice_weight: weights of the three terms.

    Returns:
        `[B, Q, T]`, 0 beyond an image's own segments.
    """
    check_matched(class_logits, mask_logits, masks, labels)
    device = mask_logits.device
    dtype = result_dtype(class_logits, mask_logits)
    with without_autocast(device):
        probability = class_logits.to(dtype).softmax(-1)
        longest = max([0, *map(len, labels)])
        costs = []
        for image, (mask, label) in enumerate(zip(masks, labels, strict=True)):
            points = _uniform((1, num_points), device).to(dtype)
            x = sample(mask_logits[image], points)
            t = sample(mask.to(device), points)
            magnitude = x.abs()
            # relu(x)·(1 − t) + relu(−x)·t is 0 for correct predictions, so that large logits among
            # them cause no rounding errors. An infinite logit gives NaN, see docs/not_finite.md.
            relu2 = x + magnitude  # 2 relu(x)
            false_positive = relu2 @ (1 - t).T
            relu_terms = 0.5 * (false_positive - relu2.sub_(magnitude, alpha=2) @ t.T)
            # −log(1 + exp(−|x|)) as log(sigmoid(|x|)), whose operators are vectorised.
            log_sigmoid = magnitude.sigmoid_().log_().sum(1)
            s = x.sigmoid_()
            dice = 1 - (2 * (s @ t.T) + 1) / (s.sum(1)[:, None] + t.sum(1) + 1)
            entropy = relu_terms - log_sigmoid[:, None]
            cost = mask_weight * entropy / num_points + dice_weight * dice
            cost -= class_weight * probability[image][:, class_index(label, probability).to(device)]
            costs.append(F.pad(cost, (0, longest - len(label))))
        return torch.stack(costs)


@torch.no_grad()
def uncertain_points(logits: Tensor, sampling: Sampling) -> Tensor:
    """Choose uncertain points `[N, P, 2]` for each map of `logits [N, h, w]`.

    Of `oversample_ratio · P` uniformly random candidates, keep the `importance_sample_ratio · P`
    with the smallest |logit|; the other points are new random ones. The order is unspecified.
    """
    count, device = logits.shape[0], logits.device
    candidates = _uniform((count, int(sampling.num_points * sampling.oversample_ratio)), device)
    candidates = candidates.to(result_dtype(logits))
    values = sample(logits, candidates)
    chosen = int(sampling.importance_sample_ratio * sampling.num_points)
    index = values.abs_().topk(chosen, dim=1, largest=False, sorted=False).indices
    points = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    if chosen < sampling.num_points:
        fresh = _uniform((count, sampling.num_points - chosen), device)
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
    """Sum the binary cross-entropy (mean over points) and the dice loss over all matched masks.

    Args:
        mask_logits: `[B, Q, h, w]`.
        masks: for each image, `[T_b, H_b, W_b]` of any dtype. Masks smaller than the largest are
            treated as if padded with zeros at the right and bottom.
        indices: for each image, the matched queries and their segments.
        sampling: how many points, and how they are chosen.
        unique: True if no segment of an image is matched twice; this saves copies of masks.

    Returns:
        Both sums, 0-dim, float32 (float64 for float64 logits), differentiable.
    """
    check_mask_logits(mask_logits, masks=masks, indices=indices)
    indices = as_pairs(indices)
    device = mask_logits.device
    flat = mask_logits.flatten(0, 1)  # rows of all images
    queries = mask_logits.shape[1]
    rows = [query.to(device) + image * queries for image, (query, _) in enumerate(indices)]
    index = torch.cat(rows)
    points = uncertain_points(flat[index], sampling)
    size = [max(mask.shape[axis] for mask in masks) for axis in (2, 1)]
    per_image = zip(masks, indices, points.split([len(row) for row in rows]), strict=True)
    targets = [
        _target_values(mask.to(device), segment.to(device), where, size, unique)
        for mask, (_, segment), where in per_image
    ]
    # Recomputed in the backward pass, so that no copy of the matched logits is kept for it.
    return recomputed(_losses, flat, index, points, torch.cat(targets))


def _losses(
    logits: Tensor, index: Tensor, points: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses of rows `index [N]` of `logits [R, h, w]`."""
    values = sample(logits.index_select(0, index), points)
    return focal_dice_loss(values, targets, 1.0, alpha=-1.0, gamma=0.0)


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
    # Reorder the points, which are far smaller, instead of the masks, and the result back.
    return sample(mask, points[segment.argsort()])[segment]
