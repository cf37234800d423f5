"""Replacements for matchers and losses of `transformers`, each built around the original."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels.integrations import point_sampling
from mfkernels.integrations.matching import (
    Pair,
    assign,
    binary_targets,
    dense_cost,
    from_pairs,
    has_hooks,
    pairs,
)
from mfkernels.ops.mask_loss import mask_loss
from mfkernels.targets import SegmentTargets

Method = Callable[..., Any]
ORIGINAL = "_mfkernels_original"
"""The attribute of a replacement that holds what it replaces."""

_PerImage = Sequence[Tensor]
"""A tensor per image."""
_Layer = tuple[Tensor, Tensor]
"""Mask logits and class logits."""

_logger = logging.getLogger(__name__)
_logged: set[str] = set()


def is_replacement(method: Any) -> bool:
    return hasattr(method, ORIGINAL)


def dense_matcher(original: Method) -> Method:
    """MaskFormer's matcher: `[B, Q, h, w]` logits against masks at that size."""

    def cost(matcher: Any, layer: _Layer, masks: _PerImage, labels: _PerImage) -> Tensor | None:
        targets = _targets(masks, labels, layer[0].device)
        return None if targets is None else _dense_cost(matcher, *layer, targets, masks)

    return _matcher(original, cost)


def point_matcher(original: Method) -> Method:
    """Mask2Former's matcher: logits and masks at random points, drawn image after image."""

    def cost(matcher: Any, layer: _Layer, masks: _PerImage, labels: _PerImage) -> Tensor:
        mask_logits, class_logits = layer
        return point_sampling.point_matching_cost(
            class_logits, mask_logits, masks, labels, matcher.num_points, **_weights(matcher)
        )

    return _matcher(original, cost)


def _matcher(original: Method, cost_of: Callable[..., Tensor | None]) -> Method:
    """A matcher by a cost `[B, Q, T]`; `original` serves the calls for which that is None."""

    @torch.no_grad()
    def forward(
        self: Any,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: _PerImage,
        class_labels: _PerImage,
    ) -> list[Pair]:
        layer = (masks_queries_logits, class_queries_logits)
        cost = cost_of(self, layer, mask_labels, class_labels)
        if cost is None:
            matched: list[Pair] = original(self, *layer, mask_labels, class_labels)
            return matched
        counts = [len(label) for label in class_labels]
        return pairs(assign(cost, counts), counts, cost.shape[1])

    return forward


def dense_criterion(original: Method) -> Method:
    """MaskFormer's losses; the matching of all layers is one call."""

    def forward(
        self: Any,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: _PerImage,
        class_labels: _PerImage,
        auxiliary_predictions: Sequence[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        targets = None
        if not _customised(self, "forward", "loss_masks") and _one_to_one(self.matcher, original):
            targets = _targets(mask_labels, class_labels, masks_queries_logits.device)
        if targets is None:
            losses: dict[str, Tensor] = original(
                self,
                masks_queries_logits,
                class_queries_logits,
                mask_labels,
                class_labels,
                auxiliary_predictions,
            )
            return losses
        layers = [(masks_queries_logits, class_queries_logits)]
        layers += [
            (layer["masks_queries_logits"], layer["class_queries_logits"])
            for layer in auxiliary_predictions or ()
        ]
        losses = {}
        matches = _match(self, layers, targets, mask_labels, class_labels)
        for layer, (assignment, indices) in enumerate(matches):
            mask_logits, class_logits = layers[layer]
            # Once per layer, as in the original: all processes must take part equally often.
            num_masks = self.get_num_masks(class_labels, device=class_labels[0].device)
            loss_mask, loss_dice = mask_loss(mask_logits, None, targets, assignment, num_masks=1.0)
            of_layer = {
                "loss_mask": loss_mask / num_masks,
                "loss_dice": loss_dice / num_masks,
                **self.loss_labels(class_logits, class_labels, indices),
            }
            suffix = f"_{layer - 1}" if layer else ""
            losses.update({name + suffix: loss for name, loss in of_layer.items()})
        return losses

    return forward


def point_losses(original: Method) -> Method:
    """Mask2Former's mask losses at uncertain points."""

    def loss_masks(
        self: Any,
        masks_queries_logits: Tensor,
        mask_labels: _PerImage,
        indices: Sequence[Pair],
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        if _customised(
            self, "loss_masks", "sample_points_using_uncertainty", "calculate_uncertainty"
        ):
            theirs: dict[str, Tensor] = original(
                self, masks_queries_logits, mask_labels, indices, num_masks
            )
            return theirs
        sampling = point_sampling.Sampling(
            self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )
        loss_mask, loss_dice = point_sampling.mask_losses(
            masks_queries_logits,
            mask_labels,
            indices,
            sampling,
            unique=_is_of(original, self) and _one_to_one(self.matcher, original),
        )
        return {"loss_mask": loss_mask / num_masks, "loss_dice": loss_dice / num_masks}

    return loss_masks


def _customised(module: Any, method: str, *parts: str) -> bool:
    """Whether somebody gave `module` another version of a part that the original method calls."""

    def home(name: str) -> Any:
        if name in vars(module) and not is_replacement(vars(module)[name]):
            return module
        return next(kind for kind in type(module).__mro__ if name in vars(kind))

    return any(home(part) is not home(method) for part in parts)


def _one_to_one(matcher: Any, original: Method) -> bool:
    """Whether a call of `matcher` is the official matching, patched or not, and nothing else."""
    return _is_of(original, matcher) and not has_hooks(matcher)


def _is_of(original: Method, module: Any) -> bool:
    """Whether the `forward` of `module`, patched or not, is of the file that `original` is from."""
    return getattr(getattr(module, "forward", None), "__module__", None) == original.__module__


def _match(
    criterion: Any,
    layers: Sequence[_Layer],
    targets: SegmentTargets,
    mask_labels: _PerImage,
    class_labels: _PerImage,
) -> list[tuple[Tensor, list[Pair]]]:
    """The assignment `[B, T]` of each layer, and the same as pairs."""
    matcher = criterion.matcher
    if not is_replacement(matcher.forward):
        indices = [matcher(*layer, mask_labels, class_labels) for layer in layers]
        return [
            (from_pairs(matched, targets.max_count, targets.device), matched) for matched in indices
        ]
    with torch.no_grad():
        cost = torch.stack([_dense_cost(matcher, *layer, targets, mask_labels) for layer in layers])
        assignment = assign(cost, targets.counts)
    return [(matched, pairs(matched, targets.counts, cost.shape[2])) for matched in assignment]


def _dense_cost(
    matcher: Any,
    mask_logits: Tensor,
    class_logits: Tensor,
    targets: SegmentTargets,
    mask_labels: _PerImage,
) -> Tensor:
    return dense_cost(
        class_logits,
        mask_logits,
        targets,
        [(mask.shape[-2], mask.shape[-1]) for mask in mask_labels],
        **_weights(matcher),
    )


def _weights(matcher: Any) -> dict[str, float]:
    return {
        "class_weight": matcher.cost_class,
        "mask_weight": matcher.cost_mask,
        "dice_weight": matcher.cost_dice,
    }


def _targets(masks: _PerImage, labels: _PerImage, device: torch.device) -> SegmentTargets | None:
    """The segments, or None, said once, where the original has to do the work."""
    targets = binary_targets(masks, labels)
    if targets is None:
        reason = (
            "a mask holds values other than 0 and 1 (ignore_index padding?); "
            "transformers' own criterion serves such calls"
        )
        if reason not in _logged:
            _logged.add(reason)
            _logger.warning(reason)
        return None
    return targets.to(device)
