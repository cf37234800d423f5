"""The matcher and the criterion of the official MaskFormer and Mask2Former, without detectron2.

Constructors, methods, arguments and results are the same as in `mask_former.modeling` and
`mask2former.modeling`. `num_points` selects between the two: 0 compares whole masks (MaskFormer), a
larger number compares them at sampled points (Mask2Former; `oversample_ratio` and
`importance_sample_ratio` also apply). All layers and images are matched in one call on their
device, and the host never waits for it. With points, there is one call per layer, to draw random
numbers in the order of the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from mfkernels.distributed import mean_num_masks
from mfkernels.integrations import point_sampling
from mfkernels.integrations.matched_targets import GroundTruth, Matches
from mfkernels.integrations.matching import (
    Pair,
    as_pairs,
    assign_layers,
    called,
    check_mask_logits,
    dense_cost,
    from_pairs,
    pairs,
)
from mfkernels.ops.class_loss import class_loss
from mfkernels.ops.mask_loss import mask_loss
from mfkernels.scalars import as_integer, as_number
from mfkernels.targets import SegmentTargets
from mfkernels.torch_internals import has_hooks, is_traced, version_of

__all__ = ["HungarianMatcher", "SetCriterion"]

Outputs = Mapping[str, Any]
Targets = Sequence[Mapping[str, Tensor]]


class HungarianMatcher(nn.Module):
    """Match queries and segments at minimum cost (MaskFormer, §3.2; Mask2Former, §3.3).

    Args:
        cost_class: weight of the class cost.
        cost_mask: weight of the focal cost; with points, of the binary cross-entropy cost.
        cost_dice: weight of the dice cost.
        num_points: the number of random points per image at which masks are compared. 0: compare
            all pixels at mask resolution, as MaskFormer does.

    Raises:
        TypeError: an argument is not a number, or `num_points` is not an integer.
        ValueError: all three weights are 0, one is not finite, or `num_points` is negative.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 0,
    ) -> None:
        super().__init__()
        self.cost_class = as_number("cost_class", cost_class)
        self.cost_mask = as_number("cost_mask", cost_mask)
        self.cost_dice = as_number("cost_dice", cost_dice)
        if self.cost_class == self.cost_mask == self.cost_dice == 0:
            raise ValueError("cost_class, cost_mask and cost_dice are all 0: nothing to match by")
        self.num_points = as_integer("num_points", num_points, at_least=0)

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_mask={self.cost_mask}, "
            f"cost_dice={self.cost_dice}, num_points={self.num_points}"
        )

    @torch.no_grad()
    def forward(self, outputs: Outputs, targets: Targets) -> list[Pair]:
        """Match the final prediction.

        Args:
            outputs: `pred_logits [B, Q, K+1]` and `pred_masks [B, Q, h, w]`, any floating-point
                dtype.
            targets: for each image, `labels [T_b]` of any integer dtype and
                `masks [T_b, H_b, W_b]`, bool or 0 and 1.

        Returns:
            For each image, the matched queries in ascending order and the segment of each query,
            both `[min(Q, T_b)]` int64 on the CPU. (The criterion uses `assign`, whose result stays
            on the device.)

        Raises:
            TypeError, ValueError: a key is missing, or a dtype, shape or label is wrong.
        """
        return self.memory_efficient_forward(outputs, targets)

    @torch.no_grad()
    def memory_efficient_forward(self, outputs: Outputs, targets: Targets) -> list[Pair]:
        """Match as `forward` does, which calls this method; a subclass may override it."""
        assignment = self.assign([outputs], targets)[0].cpu()
        counts = [len(target["labels"]) for target in targets]
        return pairs(assignment, counts, outputs["pred_logits"].shape[1])

    @torch.no_grad()
    def assign(
        self,
        layers: Sequence[Outputs],
        targets: Targets,
        segments: SegmentTargets | None = None,
    ) -> Tensor:
        """Find the query of each segment in each layer, without copying the result to the CPU.

        Args:
            layers: the `outputs` of `forward` for each of the L layers.
            targets: as in `forward`.
            segments: the same targets as `SegmentTargets`, if they exist already.

        Returns:
            `[L, B, T]` int64 on the device, −1 for a segment without a query.
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
                    class_logits, mask_logits, masks, labels, self.num_points, **weights
                )
                for class_logits, mask_logits in map(_predictions, layers)
            ]
        else:
            segments = segments or SegmentTargets.from_masks(masks, labels)
            sizes = [(mask.shape[1], mask.shape[2]) for mask in masks]
            costs = [
                dense_cost(class_logits, mask_logits, segments, sizes, **weights)
                for class_logits, mask_logits in map(_predictions, layers)
            ]
        return torch.stack(assign_layers(costs, [len(label) for label in labels]))


class SetCriterion(nn.Module):
    """Compute class and mask losses of matched queries (MaskFormer, §3.2; Mask2Former, §3.3).

    Subclasses may override `get_loss`, `loss_labels` and `loss_masks`, which have the official
    arguments; `get_loss` may support more names.

    Args:
        num_classes: K, the number of classes without "no object".
        matcher: a `HungarianMatcher`, or any module with the same `forward` that matches
            one-to-one. Any other matcher, or one with hooks, is called once per layer.
        weight_dict: the weight of each loss by name. As in the official code, the criterion only
            stores it; the model multiplies by it and drops the losses that it does not name.
        eos_coef: weight of "no object" in the class loss.
        losses: the names of the losses to compute: `"labels"`, `"masks"` and those that a
            subclass's `get_loss` adds.
        num_points: the number of points per mask at which the mask losses are computed. 0: all
            pixels at the size of the targets, as in MaskFormer.
        oversample_ratio: how many times `num_points` candidates are drawn; at least 1.
        importance_sample_ratio: the fraction of the points, from 0 to 1, that are the least certain
            candidates; the others are random.

    Attributes:
        empty_weight: `[K+1]` buffer with the class weights: 1, and `eos_coef` for "no object".

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or `losses` has an unknown name.
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
        num_classes = as_integer("num_classes", num_classes, at_least=1)
        unknown = sorted(set(losses) - {"labels", "masks"})
        if unknown and type(self).get_loss is SetCriterion.get_loss:
            raise ValueError(
                f"losses may hold 'labels' and 'masks', got {unknown}; a subclass computes others "
                "in its get_loss"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.eos_coef = as_number("eos_coef", eos_coef)
        self.losses = losses
        self.num_points = as_integer("num_points", num_points, at_least=0)
        self.oversample_ratio = as_number("oversample_ratio", oversample_ratio)
        self.importance_sample_ratio = as_number("importance_sample_ratio", importance_sample_ratio)
        if self.oversample_ratio < 1:
            raise ValueError(f"oversample_ratio must be at least 1, got {oversample_ratio}")
        if not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(
                f"importance_sample_ratio must be from 0 to 1, got {importance_sample_ratio}"
            )
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = self.eos_coef
        self.register_buffer("empty_weight", empty_weight)
        self._weights = _Weights(empty_weight, version_of(empty_weight), None, self.eos_coef)

    def forward(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Compute the unweighted losses.

        Args:
            outputs: `pred_logits [B, Q, K+1]`, `pred_masks [B, Q, h, w]` and optionally
                `aux_outputs`, a list of such dicts.
            targets: for each image, `labels [T_b]` of any integer dtype, where K means "no object",
                and `masks [T_b, H_b, W_b]`, bool or 0 and 1, on the device of the outputs.

        Returns:
            `loss_ce`, `loss_mask` and `loss_dice` of the final prediction, and the same names with
            `_0`, `_1`, … for `aux_outputs`; each 0-dim and differentiable. The mask losses are
            divided by the number of segments, averaged over all processes, at least 1; the class
            loss by the sum of the weights in this process. Labels on a GPU are not checked: one
            outside 0..K makes every `loss_ce` NaN.

        Raises:
            TypeError: the labels or the indices of the matcher are not integers.
            ValueError: the logits do not have `num_classes` + 1 classes, a label is outside 0..K,
                or the matcher matched a query or a segment of an image more than once.
        """
        _check_mapping("outputs", outputs)
        layers = [outputs, *(outputs.get("aux_outputs") or ())]
        labels, masks = _split(targets)
        truth = GroundTruth.of(SegmentTargets.from_masks(masks, labels), self.num_classes)
        num_masks = mean_num_masks(truth.segments)
        # With points, match and compute the losses layer by layer, as the official code does, so
        # that random numbers are drawn in the same order.
        parts = [[layer] for layer in layers] if self.num_points else [layers]
        result: dict[str, Tensor] = {}
        suffixes = iter(["", *(f"_{layer}" for layer in range(len(layers) - 1))])
        for part in parts:
            for layer, matches in zip(part, self._match(part, targets, truth), strict=True):
                suffix = next(suffixes)
                for loss in self.losses:
                    losses = self.get_loss(loss, layer, targets, matches, num_masks)
                    result.update({name + suffix: value for name, value in losses.items()})
        return result

    def get_loss(
        self,
        loss: str,
        outputs: Outputs,
        targets: Targets,
        indices: Sequence[Pair],
        num_masks: Tensor | float,
    ) -> dict[str, Tensor]:
        """Compute the losses of one name; a subclass may support more names.

        Args:
            loss: `"labels"` or `"masks"`.
            outputs, targets, indices, num_masks: as in `loss_labels` and `loss_masks`.

        Raises:
            ValueError: the name is unknown.
        """
        method = {"labels": self.loss_labels, "masks": self.loss_masks}.get(loss)
        if method is None:
            raise ValueError(f"loss must be 'labels' or 'masks', got {loss!r}")
        return method(outputs, targets, indices, num_masks)

    def loss_labels(
        self,
        outputs: Outputs,
        targets: Targets,
        indices: Sequence[Pair],
        num_masks: Tensor | float,
    ) -> dict[str, Tensor]:
        """Compute `loss_ce` of one layer.

        Args:
            outputs: the layer's `pred_logits [B, Q, K+1]`.
            targets: as in `forward`.
            indices: for each image, the matched queries and their segments, of any integer dtype.
            num_masks: not used.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the logits do not have `num_classes` + 1 classes, a label is outside 0..K,
                or a query has more than one segment.
        """
        logits = _need("outputs", outputs, "pred_logits")
        self._check_classes(logits)
        matches = self._matches(targets, indices)
        matches.truth.segments.check_labels(self.num_classes, no_object=True)
        weights = self._read_weights()
        loss, weight = class_loss(
            logits[None],
            matches.truth.classes,
            matches.class_assignment[None],
            weights.of_no_object,
            weights.of_classes,
        )
        return {"loss_ce": loss[0] / weight[0]}

    def _read_weights(self) -> _Weights:
        """Return the weights in `empty_weight`, and read the buffer again after a change.

        The kernel supports only class weights of 1 and a number for "no object", so that it matters
        which values the buffer has.
        """
        buffer = self.empty_weight
        if buffer.is_meta or is_traced(buffer):  # its values cannot be read
            return _Weights(buffer, None, buffer[:-1], buffer[-1])
        version = version_of(buffer)
        changed = version is None or version != self._weights.version
        if changed or buffer is not self._weights.buffer:
            *classes, no_object = buffer.tolist()
            initial = torch.tensor(self.eos_coef, dtype=buffer.dtype).item()
            self._weights = _Weights(
                buffer,
                version,
                None if all(weight == 1 for weight in classes) else buffer[:-1],
                self.eos_coef if no_object == initial else no_object,
            )
        return self._weights

    def loss_masks(
        self,
        outputs: Outputs,
        targets: Targets,
        indices: Sequence[Pair],
        num_masks: Tensor | float,
    ) -> dict[str, Tensor]:
        """Compute `loss_mask` and `loss_dice` of one layer.

        Args:
            outputs: the layer's `pred_masks [B, Q, h, w]`.
            targets, indices: as in `loss_labels`.
            num_masks: the divisor of both losses.

        Raises:
            TypeError, ValueError: a dtype or shape is wrong, or a query has more than one segment.
        """
        mask_logits = _need("outputs", outputs, "pred_masks")
        matches = self._matches(targets, indices)
        segments = matches.truth.segments
        if self.num_points:
            sampling = point_sampling.Sampling(
                self.num_points, self.oversample_ratio, self.importance_sample_ratio
            )
            masks = [segments.dense_masks(image) for image in range(segments.batch_size)]
            sums = point_sampling.mask_losses(mask_logits, masks, matches, sampling, unique=True)
        else:
            check_mask_logits(mask_logits)
            sums = mask_loss(mask_logits, None, segments, matches.assignment, num_masks=1.0)
        return {"loss_mask": sums[0] / num_masks, "loss_dice": sums[1] / num_masks}

    def _get_src_permutation_idx(self, indices: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Return the image and the query of each pair, both `[N]` int64."""
        return _flat([query for query, _ in as_pairs(indices)])

    def _get_tgt_permutation_idx(self, indices: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Return the image and the segment of each pair, both `[N]` int64."""
        return _flat([segment for _, segment in as_pairs(indices)])

    def _check_classes(self, logits: Tensor) -> None:
        if logits.ndim != 3 or logits.shape[-1] != self.num_classes + 1:
            raise ValueError(
                f"pred_logits must be [B, Q, {self.num_classes + 1}] (num_classes + 1, for no "
                f"object), got {list(logits.shape)}"
            )

    def _matches(self, targets: Targets, indices: Sequence[Pair]) -> Matches:
        if isinstance(indices, Matches):
            return indices
        labels, masks = _split(targets)
        return Matches.of(indices, masks, labels, self.num_classes)

    def _match(
        self, layers: Sequence[Outputs], targets: Targets, truth: GroundTruth
    ) -> list[Matches]:
        segments = truth.segments
        queries = [_need("outputs", layer, "pred_logits").shape[1] for layer in layers]
        if _is_ours(self.matcher):
            kind = type(self)
            if (kind.get_loss, kind.loss_labels) == (
                SetCriterion.get_loss,
                SetCriterion.loss_labels,
            ):
                # The number of classes matters for the matching too: the class cost is a
                # probability, from a softmax over all classes.
                for layer in layers:
                    self._check_classes(layer["pred_logits"])
            assignments = list(self.matcher.assign(layers, targets, segments))
            indices = [
                pairs(matched, segments.counts, count)
                for matched, count in zip(assignments, queries, strict=True)
            ]
        else:
            bare = [{key: layer[key] for key in layer if key != "aux_outputs"} for layer in layers]
            indices = [as_pairs(self.matcher(layer, targets)) for layer in bare]
            assignments = [
                from_pairs(matched, segments.counts, count, segments.device)
                for matched, count in zip(indices, queries, strict=True)
            ]
        return [
            Matches(matched, assignment, truth)
            for matched, assignment in zip(indices, assignments, strict=True)
        ]


class _Weights(NamedTuple):
    """The weights of the class loss, and the buffer that they were read from."""

    buffer: Tensor
    version: int | None
    of_classes: Tensor | None
    """`[K]`; None where all are 1."""
    of_no_object: float | Tensor


def _is_ours(matcher: nn.Module) -> TypeGuard[HungarianMatcher]:
    """Whether a call of the matcher is the official matching and nothing else."""
    ours = HungarianMatcher
    return (
        isinstance(matcher, ours)
        and called(matcher, "forward") is ours.forward
        and called(matcher, "memory_efficient_forward") is ours.memory_efficient_forward
        and not has_hooks(matcher)
    )


def _flat(indices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    images = [torch.full_like(index, image) for image, index in enumerate(indices)]
    return torch.cat(images), torch.cat([*indices])


def _predictions(layer: Outputs) -> tuple[Tensor, Tensor]:
    """Return class logits and mask logits."""
    return _need("outputs", layer, "pred_logits"), _need("outputs", layer, "pred_masks")


def _split(targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
    """Return labels and masks, image by image."""
    labels, masks = (
        [_need(f"targets[{image}]", target, key) for image, target in enumerate(targets)]
        for key in ("labels", "masks")
    )
    return labels, masks


def _check_mapping(name: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a mapping of tensors by name, got {type(given).__name__}")


def _need(name: str, given: Mapping[str, Any], key: str) -> Tensor:
    _check_mapping(name, given)
    if key not in given:
        raise ValueError(f"{name} must have {key!r}, got {sorted(given)}")
    tensor = given[key]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}[{key!r}] must be a torch.Tensor, got {type(tensor).__name__}")
    return tensor
