"""The criterion as the official code computes it: dense logits, SciPy on the host, full-size masks.

The operations of mfkernels each replace a part of it. Tests and benchmarks compare against the
whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.focal_dice.reference import focal_dice_loss
from mfkernels.ops.matching_cost.reference import dice_cost, focal_cost


def criterion(
    outputs: Mapping[str, Any],
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    *,
    class_weight: float = 1.0,
    mask_weight: float = 20.0,
    dice_weight: float = 1.0,
    no_object_weight: float = 0.1,
    alpha: float = 0.25,
    gamma: float = 2.0,
    class_weights: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    """The unweighted losses of `pred_logits [B, Q, K+1]`, `pred_masks [B, Q, h, w]`, `aux_outputs`.

    `targets`: for each image `labels [T_b]` and `masks [T_b, H, W]`; all images have the same size.
    """
    num_masks = max(sum(len(target["labels"]) for target in targets), 1)
    weight = outputs["pred_logits"].new_ones(num_classes + 1)
    weight[:-1] = class_weights
    weight[-1] = no_object_weight
    losses: dict[str, Tensor] = {}
    aux = enumerate(outputs.get("aux_outputs", ()))
    for suffix, prediction in (("", outputs), *((f"_{i}", each) for i, each in aux)):
        class_logits, mask_logits = prediction["pred_logits"], prediction["pred_masks"]
        classes = torch.full(class_logits.shape[:2], num_classes, device=class_logits.device)
        matched_logits: list[Tensor] = []
        matched_masks: list[Tensor] = []
        for image, target in enumerate(targets):
            masks = target["masks"].to(mask_logits)
            low = F.interpolate(masks[:, None], mask_logits.shape[-2:], mode="nearest")[:, 0]
            flat = mask_logits[image].detach().flatten(1)
            probability = class_logits[image].detach().softmax(-1)
            cost = (
                mask_weight * focal_cost(flat, low.flatten(1), alpha, gamma)
                - class_weight * probability[:, target["labels"]]
                + dice_weight * dice_cost(flat, low.flatten(1))
            )
            pairs = linear_sum_assignment(cost.cpu())
            queries, segments = (torch.from_numpy(side).to(cost.device) for side in pairs)
            classes[image, queries] = target["labels"][segments]
            matched_logits.append(mask_logits[image, queries])
            matched_masks.append(masks[segments])
        upsampled = F.interpolate(
            torch.cat(matched_logits)[:, None],
            targets[0]["masks"].shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        focal, dice = focal_dice_loss(
            upsampled.flatten(1), torch.cat(matched_masks).flatten(1), alpha, gamma
        )
        losses[f"loss_ce{suffix}"] = F.cross_entropy(class_logits.transpose(1, 2), classes, weight)
        losses[f"loss_mask{suffix}"] = focal.sum() / num_masks
        losses[f"loss_dice{suffix}"] = dice.sum() / num_masks
    return losses
