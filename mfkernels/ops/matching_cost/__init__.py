"""The cost of matching each query to each ground-truth segment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import mfkernels.ops.matching_cost.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import (
    MaskPredictions,
    check_device,
    check_floating,
    check_focal,
    check_predictions,
    check_targets,
    native_problem,
    without_autocast,
)
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.matching_cost import reference
from mfkernels.scalars import as_number
from mfkernels.targets import SegmentTargets


class CostOptions(NamedTuple):
    """Options of `matching_cost`, in the order of the operator's schema."""

    class_weight: float
    mask_weight: float
    dice_weight: float
    alpha: float
    gamma: float


def matching_cost(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    targets: SegmentTargets,
    *,
    class_weight: float = 1.0,
    mask_weight: float = 20.0,
    dice_weight: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Compute the matching cost of MaskFormer (§3.2) for each query and segment.

    The cost is `class_weight · (−p[label]) + mask_weight · focal + dice_weight · dice`, where p is
    the softmax of the class logits. Focal and dice cost are computed at mask resolution; targets
    are subsampled to it like `F.interpolate(mode="nearest")`. Computed in float32 (float64 if an
    input is float64), also under autocast. Not differentiable.

    Args:
        class_logits: `[L, B, Q, K+1]` or `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`; or mask logits `[L, B, Q, h, w]` or
            `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits. All predictions may have any
            floating-point dtype.
        targets: the segments of the B images, of any height and width.
        class_weight, mask_weight, dice_weight: weights of the three terms.
        alpha: weight of the positives in the focal cost, at most 1. Negative: no weighting.
        gamma: exponent of the focal cost, at least 0.

    Returns:
        `[L, B, Q, T]` (or `[B, Q, T]`), float32 or float64; T is the largest number of segments in
        an image. Columns beyond an image's own segments are 0. On a GPU, a label outside `[0, K)`
        that could not be checked before (see `SegmentTargets`) makes its column NaN.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value is wrong.
    """
    predictions = check_predictions(mask_embed, pixel_features)
    check_targets(targets, predictions)
    check_floating("class_logits", class_logits)
    check_device("class_logits", class_logits, mask_embed.device)
    check_focal(alpha, gamma)
    options = CostOptions(
        class_weight=as_number("class_weight", class_weight),
        mask_weight=as_number("mask_weight", mask_weight),
        dice_weight=as_number("dice_weight", dice_weight),
        alpha=float(alpha),
        gamma=float(gamma),
    )
    layers, images, queries = predictions.embed.shape[:3]
    expected = [layers, images, queries] if predictions.had_layers else [images, queries]
    if list(class_logits.shape[:-1]) != expected or class_logits.shape[-1] < 2:
        raise ValueError(
            f"class_logits must be [{', '.join(map(str, expected))}, K+1] to fit the masks, "
            f"got {list(class_logits.shape)}"
        )
    targets.check_labels(class_logits.shape[-1] - 1)
    layered = class_logits if predictions.had_layers else class_logits[None]
    cost = matching_cost_unchecked(layered, predictions, targets, options)
    return cost if predictions.had_layers else cost[0]


@served_by_pytorch_where_kernels_fail("matching_cost")
@torch.no_grad()
def matching_cost_unchecked(
    class_logits: Tensor,
    predictions: MaskPredictions,
    targets: SegmentTargets,
    options: CostOptions,
) -> Tensor:
    """Compute `matching_cost` `[L, B, Q, T]` of checked arguments with a layer axis."""
    # Detached, because `no_grad` does not stop forward-mode differentiation.
    class_logits, embed = class_logits.detach(), predictions.embed.detach()
    features = None if predictions.features is None else predictions.features.detach()
    with without_autocast(embed.device):
        problem = native_problem(class_logits, embed, features)
        if backend.select("matching_cost", embed.device, problem) != "native":
            return reference.matching_cost(class_logits, embed, features, targets, *options)
        cost: Tensor = torch.ops.mfkernels.matching_cost(
            class_logits,
            embed,
            features,
            targets.label_map,
            targets.masks,
            targets.labels,
            targets.counts_tensor(),
            targets.max_count,
            *options,
        )
        return cost
