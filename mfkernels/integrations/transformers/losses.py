"""Replacements for the matchers and losses of `transformers`, each built around the original."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels.integrations import point_sampling
from mfkernels.integrations.matching import (
    Pair,
    as_pairs,
    assign,
    assign_layers,
    binary_targets,
    called,
    dense_cost,
    dense_cost_of_any_masks,
    from_pairs,
    pairs,
    problem_of,
)
from mfkernels.integrations.transformers.binding import (
    BEHIND_HOOK,
    Method,
    is_replacement,
    official,
    overridden_part,
)
from mfkernels.ops.mask_loss import mask_loss
from mfkernels.targets import SegmentTargets
from mfkernels.torch_internals import has_hooks

_PerImage = Sequence[Tensor]
"""One tensor per image."""
_Layer = tuple[Tensor, Tensor]
"""Mask logits and class logits."""

_PARTS = (
    "_get_predictions_permutation_indices",
    "_get_targets_permutation_indices",
    "_max_by_axis",
    "_pad_images_to_max_in_batch",
)
"""Methods that the official mask losses call and ours do not."""

_logger = logging.getLogger(__name__)
_logged: set[str] = set()


def dense_matcher(_original: Method) -> Method:
    """MaskFormer's matcher: compares logits `[B, Q, h, w]` with masks at that size."""

    def cost(matcher: Any, layer: _Layer, masks: _PerImage, labels: _PerImage) -> Tensor:
        mask_logits, class_logits = layer
        # Reading the values of masks would break a graph that is being compiled.
        can_check = not torch.compiler.is_compiling() or all(m.dtype == torch.bool for m in masks)
        targets = binary_targets(masks, labels) if can_check else None
        if targets is not None:
            return _dense_cost(matcher, *layer, targets.to(mask_logits.device), masks)
        return dense_cost_of_any_masks(
            class_logits, mask_logits, masks, labels, **_weights(matcher)
        )

    return _matcher(cost)


def point_matcher(_original: Method) -> Method:
    """Mask2Former's matcher: compares logits and masks at random points, drawn per image."""

    def cost(matcher: Any, layer: _Layer, masks: _PerImage, labels: _PerImage) -> Tensor:
        mask_logits, class_logits = layer
        return point_sampling.point_matching_cost(
            class_logits, mask_logits, masks, labels, matcher.num_points, **_weights(matcher)
        )

    return _matcher(cost)


def _matcher(cost_of: Callable[..., Tensor]) -> Method:
    """Make a matcher from a function that computes the cost `[B, Q, T]`."""

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
        counts = [len(label) for label in class_labels]
        return pairs(assign(cost, counts), counts, cost.shape[1])

    return forward


def dense_criterion(original: Method) -> Method:
    """MaskFormer's losses; all layers are matched in one call."""

    def forward(
        self: Any,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: _PerImage,
        class_labels: _PerImage,
        auxiliary_predictions: Sequence[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        targets = None
        # If other code replaces the matcher, the mask losses or `forward`, call the original, which
        # calls them for one layer after the other.
        other_forward = auxiliary_predictions and not _recurses_into_ours(self, original)
        changed = other_forward or overridden_part(self, original, "loss_masks", *_PARTS)
        if not changed and _one_to_one(self, original):
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
        class_labels = [label.long() for label in class_labels]
        matches = _match(self, layers, targets, mask_labels, class_labels)
        for layer, (assignment, indices) in enumerate(matches):
            mask_logits, class_logits = layers[layer]
            # Once per layer, as in the original: it contains a collective operation, which all
            # processes must call equally often.
            num_masks = self.get_num_masks(class_labels, device=class_labels[0].device)
            of_layer = {
                **_dense_losses(mask_logits, targets, assignment, num_masks),
                **self.loss_labels(class_logits, class_labels, indices),
            }
            suffix = f"_{layer - 1}" if layer else ""
            losses.update({name + suffix: loss for name, loss in of_layer.items()})
        return losses

    return forward


def dense_losses(original: Method) -> Method:
    """MaskFormer's mask losses, for calls from subclasses and with other matchers."""

    def loss_masks(
        self: Any,
        masks_queries_logits: Tensor,
        mask_labels: _PerImage,
        indices: Sequence[Pair],
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        targets = assignment = None
        # The losses do not depend on the labels.
        labels = [mask.new_zeros(len(mask), dtype=torch.int64) for mask in mask_labels]
        if not _overrides_parts(self, original):
            targets = _targets(mask_labels, labels, masks_queries_logits.device)
        if targets is not None:
            assignment = _assignment(indices, targets, masks_queries_logits.shape[1])
        if targets is None or assignment is None:
            theirs: dict[str, Tensor] = original(
                self, masks_queries_logits, mask_labels, indices, num_masks
            )
            return theirs
        return _dense_losses(masks_queries_logits, targets, assignment, num_masks)

    return loss_masks


def _dense_losses(
    mask_logits: Tensor, targets: SegmentTargets, assignment: Tensor, num_masks: Tensor
) -> dict[str, Tensor]:
    loss_mask, loss_dice = mask_loss(mask_logits, None, targets, assignment, num_masks=1.0)
    return {"loss_mask": loss_mask / num_masks, "loss_dice": loss_dice / num_masks}


def _assignment(indices: Sequence[Pair], targets: SegmentTargets, queries: int) -> Tensor | None:
    """Return the assignment `[B, T]`, or None for pairs that only the original supports.

    The latter is logged once.
    """
    indices = as_pairs(indices)
    problem = problem_of(indices, targets.counts, queries)
    if problem is not None:
        _warn_once(
            "the matcher does not match one-to-one; transformers' own mask losses run in this case"
        )
        return None
    return from_pairs(indices, targets.counts, queries, targets.device)


def point_losses(original: Method) -> Method:
    """Mask2Former's mask losses at uncertain points."""

    def loss_masks(
        self: Any,
        masks_queries_logits: Tensor,
        mask_labels: _PerImage,
        indices: Sequence[Pair],
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        parts = ("sample_points_using_uncertainty", "calculate_uncertainty")
        if _overrides_parts(self, original, *parts):
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
            unique=_is_from_same_module(original, self) and _one_to_one(self, original),
        )
        return {"loss_mask": loss_mask / num_masks, "loss_dice": loss_dice / num_masks}

    return loss_masks


def _overrides_parts(module: Any, original: Method, *parts: str) -> bool:
    """Whether a subclass or other code overrides a method that the official mask losses call.

    If so, it is logged once.
    """
    changed = overridden_part(module, original, *parts, *_PARTS)
    if changed is not None:
        _warn_once(
            f"{type(module).__name__} has its own {changed}; "
            "transformers' own mask losses, which call it, run in this case"
        )
    return changed is not None


def _recurses_into_ours(module: Any, original: Method) -> bool:
    """Whether `module.forward`, which `original` calls for each further layer, is ours."""
    hooked = BEHIND_HOOK in vars(module)
    return official(type(module).forward if hooked else called(module, "forward")) is original


def _one_to_one(criterion: Any, original: Method) -> bool:
    """Whether calling the matcher runs the official matching (patched or not) and nothing else."""
    return _is_from_same_module(original, criterion.matcher) and not has_hooks(criterion.matcher)


def _is_from_same_module(original: Method, module: Any) -> bool:
    """Whether the `forward` of `module` (patched or not) is from the same module as `original`."""
    forward = called(module, "forward")
    return forward is not None and forward.__module__ == original.__module__


def _match(
    criterion: Any,
    layers: Sequence[_Layer],
    targets: SegmentTargets,
    mask_labels: _PerImage,
    class_labels: _PerImage,
) -> list[tuple[Tensor, list[Pair]]]:
    """Return the assignment `[B, T]` of each layer, and the same as pairs."""
    matcher = criterion.matcher
    if not is_replacement(called(matcher, "forward")):
        indices = [matcher(*layer, mask_labels, class_labels) for layer in layers]
        return [
            (from_pairs(matched, targets.counts, mask_logits.shape[1], targets.device), matched)
            for matched, (mask_logits, _) in zip(indices, layers, strict=True)
        ]
    with torch.no_grad():
        costs = [_dense_cost(matcher, *layer, targets, mask_labels) for layer in layers]
        assignments = assign_layers(costs, targets.counts)
    return [
        (matched, pairs(matched, targets.counts, cost.shape[1]))
        for matched, cost in zip(assignments, costs, strict=True)
    ]


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
    """Return the segments, or None if the original must run, which is logged once."""
    targets = binary_targets(masks, labels)
    if targets is None:
        _warn_once(
            "a mask holds values other than 0 and 1 (ignore_index padding?); "
            "transformers' own criterion runs in this case"
        )
        return None
    return targets.to(device)


def _warn_once(reason: str) -> None:
    """Log a warning once."""
    if reason not in _logged:
        _logged.add(reason)
        _logger.warning(reason)
