"""The cost of matching every query to every ground-truth segment."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import (
    check_device,
    check_floating,
    check_focal,
    check_masks,
    check_targets,
    native_problem,
    result_dtype,
)
from mfkernels.ops.common import operator_checks
from mfkernels.ops.matching_cost import reference
from mfkernels.targets import SegmentTargets


@torch.no_grad()
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
    """`class_weight · (−p[label]) + mask_weight · focal + dice_weight · dice`.

    The matching cost of MaskFormer (§3.2 and appendix A). Focal and dice cost are taken at mask
    resolution; targets are subsampled to it as `F.interpolate(mode="nearest")` does. Computed in
    float32 (float64 if an input is), under autocast too. Nothing is differentiated.

    Args:
        class_logits: `[L, B, Q, K+1]` or `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`; or mask logits `[L, B, Q, h, w]` or `[B, Q, h,
            w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        targets: the segments of the B images, of any size.
        class_weight, mask_weight, dice_weight: weights of the three terms.
        alpha: weight of the positives in the focal loss; negative: no weighting.
        gamma: exponent of the focal loss, at least 0.

    Returns:
        `[L, B, Q, T]` (or `[B, Q, T]`), T the largest number of segments in an image. Columns
        beyond an image's
        own segments are 0. On a GPU, a label outside `[0, K)` that could not be checked before (see
        `SegmentTargets`) gives NaN in its column.

    Raises:
        TypeError, ValueError: a dtype, shape, device, label, `alpha` or `gamma` does not fit.
    """
    masks = check_masks(mask_embed, pixel_features)
    check_targets(targets, masks)
    check_floating("class_logits", class_logits)
    check_device("class_logits", class_logits, mask_embed.device)
    check_focal(alpha, gamma)
    expected = [*masks.embed.shape[:3]] if masks.had_layers else [*masks.embed.shape[1:3]]
    if list(class_logits.shape[:-1]) != expected or class_logits.shape[-1] < 2:
        raise ValueError(
            f"class_logits must be [{', '.join(map(str, expected))}, K+1] to fit the masks, "
            f"got {list(class_logits.shape)}"
        )
    targets.check_labels(class_logits.shape[-1] - 1)
    logits = class_logits if masks.had_layers else class_logits[None]
    options = (class_weight, mask_weight, dice_weight, alpha, gamma)
    with torch.autocast(mask_embed.device.type, enabled=False):
        problem = native_problem(logits, masks.embed, masks.features)
        if backend.select("matching_cost", mask_embed.device, problem) == "native":
            cost = torch.ops.mfkernels.matching_cost(
                logits,
                masks.embed,
                masks.features,
                targets.label_map,
                targets.masks,
                targets.labels,
                targets.counts_tensor(),
                targets.max_count,
                *options,
            )
        else:
            cost = reference.matching_cost(logits, masks.embed, masks.features, targets, *options)
    return cost if masks.had_layers else cost[0]


def _fake(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    max_count: int,
    *options: float,
) -> Tensor:
    operator_checks.matching_cost(
        class_logits,
        mask_embed,
        pixel_features,
        label_map,
        masks,
        labels,
        counts,
        max_count,
        *options,
    )
    dtype = result_dtype(class_logits, mask_embed, pixel_features)
    return class_logits.new_empty((*class_logits.shape[:3], max_count), dtype=dtype)


if hasattr(torch.ops.mfkernels, "matching_cost"):
    torch.library.register_fake("mfkernels::matching_cost", _fake)
