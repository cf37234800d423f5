"""The matcher and the criterion of the official MaskFormer and Mask2Former, without detectron2.

Constructors, arguments and results are those of `mask_former.modeling` and of
`mask2former.modeling`, which differ by points: with `num_points` (and, for the criterion,
`oversample_ratio` and `importance_sample_ratio`) the masks are compared at sampled points. All
layers and images are matched in one call on their device (with points: one call per layer, because
that is the order of the random numbers), and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfkernels.distributed import mean_num_masks
from mfkernels.integrations import point_sampling
from mfkernels.integrations.matching import (
    Pair,
    assign,
    dense_cost,
    from_pairs,
    has_hooks,
    pairs,
)
from mfkernels.ops.class_loss import class_loss
from mfkernels.ops.mask_loss import mask_loss
from mfkernels.targets import SegmentTargets

__all__ = ["HungarianMatcher", "SetCriterion"]

Outputs = Mapping[str, Any]
Targets = Sequence[Mapping[str, Tensor]]


class HungarianMatcher(nn.Module):
    """Minimum-cost matching of queries and segments (MaskFormer, §3.2; Mask2Former, §3.3).

    Args:
        cost_class, cost_mask, cost_dice: weights of the class cost, of the focal cost (with points:
            the cross-entropy cost) and of the dice cost; not all 0.
        num_points: how many random points the masks of an image are compared at; 0: MaskFormer's
            comparison of all pixels at mask resolution.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 0,
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError("cost_class, cost_mask and cost_dice are all 0: nothing to match by")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_mask={self.cost_mask}, "
            f"cost_dice={self.cost_dice}, num_points={self.num_points}"
        )

    @torch.no_grad()
    def forward(self, outputs: Outputs, targets: Targets) -> list[Pair]:
        """Match the final prediction.

        Args:
            outputs: `pred_logits [B, Q, K+1]` and `pred_masks [B, Q, h, w]`.
            targets: per image `labels [T_b]` and `masks [T_b, H_b, W_b]`, bool or 0 and 1.

        Returns:
            Per image the matched queries, ascending, and the segment of each, both
            `[min(Q, T_b)]` int64, on the CPU. The criterion uses `assign`, which stays on the
            device.
        """
        counts = [len(target["labels"]) for target in targets]
        assignment = self.assign([outputs], targets)[0].cpu()
        return pairs(assignment, counts, outputs["pred_logits"].shape[1])

    @torch.no_grad()
    def assign(
        self,
        layers: Sequence[Outputs],
        targets: Targets,
        segments: SegmentTargets | None = None,
    ) -> Tensor:
        """`[L, B, T]` int64 on the device: the query of each segment of each layer, or −1.

        Args:
            layers, targets: see `forward`.
            segments: the same targets, if they are there already.
        """
        weights = {
            "class_weight": self.cost_class,
            "mask_weight": self.cost_mask,
            "dice_weight": self.cost_dice,
        }
        labels, masks = _split(targets)
        if self.num_points:
            costs = [
                point_sampling.point_matching_cost(
                    layer["pred_logits"],
                    layer["pred_masks"],
                    masks,
                    labels,
                    self.num_points,
                    **weights,
                )
                for layer in layers
            ]
        else:
            segments = segments or SegmentTargets.from_masks(masks, labels)
            sizes = [(mask.shape[1], mask.shape[2]) for mask in masks]
            costs = [
                dense_cost(layer["pred_logits"], layer["pred_masks"], segments, sizes, **weights)
                for layer in layers
            ]
        return assign(torch.stack(costs), [len(label) for label in labels])


class SetCriterion(nn.Module):
    """Class and mask losses of matched queries (MaskFormer, §3.2; Mask2Former, §3.3).

    Args:
        num_classes: K, without "no object".
        matcher: a `HungarianMatcher`, or any module with its `forward` that matches one-to-one;
            another one, or one with hooks, is called layer after layer.
        weight_dict: the weight of each loss by name. It is only kept, as in the official code,
            whose models multiply by it and drop the losses that are not in it.
        eos_coef: weight of "no object" in the class loss.
        losses: which to compute, of `"labels"` and `"masks"`.
        num_points: how many points a mask loss takes; 0: MaskFormer's losses of all pixels at the
            size of the targets.
        oversample_ratio: how many times as many points are drawn at first.
        importance_sample_ratio: how much of the points are those that are least certain.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        eos_coef: float,
        losses: Sequence[str],
        num_points: int = 0,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        unknown = sorted(set(losses) - {"labels", "masks"})
        if unknown:
            raise ValueError(f"losses may hold 'labels' and 'masks', got {unknown}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.eos_coef = eos_coef
        self.losses = losses
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        # Nothing reads it here; it is in the official checkpoints.
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """The unweighted losses.

        Args:
            outputs: `pred_logits [B, Q, K+1]`, `pred_masks [B, Q, h, w]` and, if wanted,
                `aux_outputs`, a list of such dicts.
            targets: per image `labels [T_b]` and `masks [T_b, H_b, W_b]`, bool or 0 and 1, on the
                device of the outputs.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the final prediction, then the same with `_0`,
            `_1`, … for `aux_outputs`; 0-dim, differentiable. The mask losses are divided by
            the number of segments, averaged over all processes, at least 1; the class loss by the
            weights of this process.

        Raises:
            ValueError: the matcher gave a query or a segment of an image more than once.
        """
        layers = [outputs, *(outputs.get("aux_outputs") or ())]
        labels, masks = _split(targets)
        segments = SegmentTargets.from_masks(masks, labels)
        num_masks = mean_num_masks(segments)
        if self.num_points:
            # Matching and loss of each layer in turn, as the random numbers are drawn.
            losses = [self._layers([layer], targets, segments, num_masks)[0] for layer in layers]
        else:
            losses = self._layers(layers, targets, segments, num_masks)
        result: dict[str, Tensor] = {}
        for layer, of_layer in enumerate(losses):
            suffix = f"_{layer - 1}" if layer else ""
            result.update({name + suffix: loss for name, loss in of_layer.items()})
        return result

    def _layers(
        self,
        layers: Sequence[Outputs],
        targets: Targets,
        segments: SegmentTargets,
        num_masks: Tensor,
    ) -> list[dict[str, Tensor]]:
        result = []
        matches = self._match(layers, targets, segments)
        for layer, (matched, indices) in zip(layers, matches, strict=True):
            losses: dict[str, Tensor] = {}
            if "labels" in self.losses:
                loss, weight = class_loss(
                    layer["pred_logits"][None], segments, matched[None], self.eos_coef
                )
                losses["loss_ce"] = loss[0] / weight[0]
            if "masks" in self.losses:
                loss_mask, loss_dice = self._mask_losses(
                    layer["pred_masks"], segments, matched, indices
                )
                losses["loss_mask"] = loss_mask / num_masks
                losses["loss_dice"] = loss_dice / num_masks
            result.append(losses)
        return result

    def _match(
        self, layers: Sequence[Outputs], targets: Targets, segments: SegmentTargets
    ) -> list[tuple[Tensor, list[Pair]]]:
        """The assignment `[B, T]` of each layer, and the same as pairs."""
        forward = getattr(self.matcher.forward, "__func__", None)
        if (
            isinstance(self.matcher, HungarianMatcher)
            and forward is HungarianMatcher.forward
            and not has_hooks(self.matcher)
        ):
            assignment = self.matcher.assign(layers, targets, segments)
            queries = layers[0]["pred_logits"].shape[1]
            return [(matched, pairs(matched, segments.counts, queries)) for matched in assignment]
        indices = [self.matcher(layer, targets) for layer in layers]
        return [
            (from_pairs(matched, segments.max_count, segments.device), matched)
            for matched in indices
        ]

    def _mask_losses(
        self,
        mask_logits: Tensor,
        segments: SegmentTargets,
        matched: Tensor,
        indices: Sequence[Pair],
    ) -> tuple[Tensor, Tensor]:
        if not self.num_points:
            return mask_loss(mask_logits, None, segments, matched, num_masks=1.0)
        sampling = point_sampling.Sampling(
            self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )
        masks = [segments.dense_masks(image) for image in range(segments.batch_size)]
        return point_sampling.mask_losses(mask_logits, masks, indices, sampling, unique=True)


def _split(targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
    return [target["labels"] for target in targets], [target["masks"] for target in targets]
