"""The MaskFormer criterion: match segments to queries, then compute class, mask and dice losses."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mfkernels.checks import (
    MaskPredictions,
    check_device,
    check_floating,
    check_focal,
    check_num_masks,
    check_predictions,
    check_targets,
    usable_by_autograd,
    without_autocast,
)
from mfkernels.distributed import in_parallel, mean_num_masks, mean_over_processes
from mfkernels.layers import stack_layers
from mfkernels.ops.assignment import batch_linear_assignment_with_status
from mfkernels.ops.class_loss import class_loss as sum_class_loss
from mfkernels.ops.loss_sums import loss_sums
from mfkernels.ops.mask_loss import segment_losses_unchecked
from mfkernels.ops.matching_cost import CostOptions, matching_cost_unchecked
from mfkernels.scalars import as_integer, as_number
from mfkernels.targets import SegmentTargets, copied_to
from mfkernels.torch_internals import is_transformed, register_mapping, version_of, without_subclass

ClassLoss = Literal["per_process", "over_all"]
Matching = Literal["bipartite", "fixed"]
_MAX_COPIED_BYTES = 1 << 26
"""Mask logits of up to this size are copied into one tensor so that one launch covers all layers.
On a GPU, copying more takes longer than the launches that it saves."""
_KINDS = ("loss_ce", "loss_mask", "loss_dice")
_LOSS_NAME = re.compile(r"(loss_ce|loss_mask|loss_dice)(_\d+)?")


class _Layers(NamedTuple):
    """The predictions of one or more layers."""

    class_logits: Tensor
    """`[L, B, Q, K+1]`."""
    predictions: MaskPredictions
    """The mask predictions, with the same layers and queries."""


class LossesWithTotal(dict[str, Tensor]):
    """The losses by name, and their weighted sum, which the kernel computes in the same launch."""

    def __init__(
        self,
        losses: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        total: Tensor | None = None,
        weights: tuple[float, float, float] | None = None,
    ) -> None:
        """Without a total, which PyTorch omits when it rebuilds a pytree, act as a plain dict."""
        super().__init__(losses)
        self._total = total
        self._weights = weights
        self._given = tuple((name, loss, version_of(loss)) for name, loss in self.items())

    def total_of(self, weights: tuple[float, float, float]) -> Tensor | None:
        """Return the total; None if the weights differ, if a loss was changed, added or removed, or
        in inference mode, where in-place changes cannot be detected."""
        unchanged = len(self) == len(self._given) and all(
            version is not None and self.get(name) is loss and version_of(loss) == version
            for name, loss, version in self._given
        )
        return self._total if unchanged and weights == self._weights else None


register_mapping(LossesWithTotal)


class MaskFormerCriterion(nn.Module):
    """Matching and losses of MaskFormer (§3.2 and §3.3), named as in the official code.

    Matching, losses and the number of masks stay on the device; the host never waits for it.
    Everything is computed in float32 (float64 if an input is float64), also under autocast.

    Args:
        num_classes: K, the number of classes without "no object".
        class_weight, mask_weight, dice_weight: weights of the three terms, in the matching cost
            and in `total`; not negative.
        no_object_weight: weight of "no object" in the class loss; not negative. With 0, the class
            loss of a batch without segments is NaN, as in the official code (0 / 0).
        alpha: weight of the positives in the focal loss, at most 1. Negative: no weighting.
        gamma: exponent of the focal loss, at least 0.
        class_weights: `[K]`, weights of the classes in the class loss, as in `F.cross_entropy`.
            None: all are 1. As in the official code, the matching cost does not use them.
        class_loss: which weights the class loss is divided by. `"per_process"`: those of the
            queries of this process, as in the official code; a segment then weighs more in a
            process that has few. `"over_all"`: their mean over all processes, so that several
            processes learn what one would.
        matching: `"bipartite"`: find the assignment of segments to queries with the least total
            cost. `"fixed"`: assign each segment to the query of its class, which requires Q = K
            (the paper's MaskFormer-fixed); if an image has several segments of a class, only the
            first one is used.

    Attributes:
        weights: the weight of each kind of loss, by the names `loss_ce`, `loss_mask` and
            `loss_dice`.
        class_weights: `[K]` float32, or None.
        bad_costs: 0-dim int64 on the device. The number of cost matrices, one per layer and image,
            that held a NaN or an infinity so far in this process. They are matched all the same
            (see `mfkernels.batch_linear_assignment`). Calls inside `torch.func` are not counted.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or value.
    """

    bad_costs: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_weights: Sequence[float] | Tensor | None = None,
        class_loss: ClassLoss = "per_process",
        matching: Matching = "bipartite",
    ) -> None:
        super().__init__()
        num_classes = as_integer("num_classes", num_classes, at_least=1)
        given = {
            "class_weight": class_weight,
            "mask_weight": mask_weight,
            "dice_weight": dice_weight,
            "no_object_weight": no_object_weight,
        }
        weights = {name: as_number(name, weight) for name, weight in given.items()}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        check_focal(alpha, gamma)
        _check_choice("class_loss", class_loss, ClassLoss)
        _check_choice("matching", matching, Matching)
        self.class_loss = class_loss
        self.matching = matching
        per_class = None if class_weights is None else _check_weights(class_weights, num_classes)
        self.register_buffer("class_weights", per_class, persistent=False)
        self._given_weights = None if per_class is None else per_class.cpu()
        self.num_classes = num_classes
        self.weights = {
            "loss_ce": weights["class_weight"],
            "loss_mask": weights["mask_weight"],
            "loss_dice": weights["dice_weight"],
        }
        self.no_object_weight = weights["no_object_weight"]
        self.alpha = alpha
        self.gamma = gamma
        # Not a buffer: DistributedDataParallel would overwrite it with the value of rank 0.
        self.bad_costs = torch.zeros((), dtype=torch.int64, device="cpu")
        self._warned = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskFormerCriterion:
        before = self.class_weights
        super()._apply(fn, recurse)
        device = fn(self.bad_costs).device
        # Use only the device of what `fn` returns: from `to_empty`, its value is uninitialised.
        if self.bad_costs.is_meta:
            self.bad_costs = torch.zeros_like(self.bad_costs, device=device)
        self.bad_costs = self.bad_costs.to(device)
        self.class_weights = kept_weights(before, self.class_weights, self._given_weights)
        return self

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, weights={self.weights}, "
            f"no_object_weight={self.no_object_weight}, alpha={self.alpha}, gamma={self.gamma}, "
            f"class_loss={self.class_loss}, matching={self.matching}"
        )

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: SegmentTargets | Sequence[Mapping[str, Tensor]],
        *,
        num_masks: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the unweighted losses of every layer.

        Args:
            outputs: in one of these forms, with any floating-point dtype:

                * factored: `class_logits [L, B, Q, K+1]`, `mask_embed [L, B, Q, C]` and
                  `pixel_features [B, C, h, w]`; the last layer is the final prediction. For a
                  single layer, `[B, Q, K+1]` and `[B, Q, C]`.
                * official: `pred_logits [B, Q, K+1]`, `pred_masks [B, Q, h, w]` and optionally
                  `aux_outputs`, a list of such dicts for the earlier layers.
            targets: the segments; or the official list with one dict per image, `labels [T_b]` and
                `masks [T_b, H, W]`. On the device of the outputs.
            num_masks: the divisor of the mask losses, positive, a number or a 0-dim tensor. None:
                the number of segments, averaged over all processes, at least 1. If you accumulate
                gradients, pass the mean over the parts of a step.

        Returns:
            `loss_ce`, `loss_mask` and `loss_dice` of the final prediction, and the same names with
            `_0`, `_1`, … for the earlier layers. Each is 0-dim, float32 (float64 if an input is
            float64) and differentiable. On a GPU, a label outside `[0, K)` that could not be
            checked before (see `SegmentTargets`) makes every `loss_ce` NaN.

        Raises:
            TypeError, ValueError: a key is missing, or a dtype, shape, device or value is wrong.
        """
        groups, targets = self._check(outputs, targets)
        if num_masks is not None:
            check_num_masks(num_masks)
        with without_autocast(targets.device):
            assignment = self._match(groups, targets)
            divisor: float | Tensor = targets.num_segments or 1
            if isinstance(num_masks, Tensor):
                divisor = usable_by_autograd(num_masks)
            elif num_masks is not None:
                divisor = as_number("num_masks", num_masks)
            elif in_parallel():
                divisor = mean_num_masks(targets)
            matched = assignment.split([len(layers.class_logits) for layers in groups])
            sums = [
                self._losses(layers, targets, queries, divisor)
                for layers, queries in zip(groups, matched, strict=True)
            ]
        total = sums[0][1] if len(sums) == 1 else None
        # By kind and layer; `unsafe_split`, as official code weights the losses in place.
        by_kind = [
            [loss.squeeze(0) for losses, _ in sums for loss in losses[kind].unsafe_split(1)]
            for kind in range(3)
        ]
        final = len(assignment) - 1
        values = [of_kind[layer] for layer in (final, *range(final)) for of_kind in by_kind]
        losses = dict(zip(loss_names(final + 1), values, strict=True))
        return losses if total is None else LossesWithTotal(losses, total, self._weights())

    def _losses(
        self,
        layers: _Layers,
        targets: SegmentTargets,
        assignment: Tensor,
        num_masks: float | Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Class, mask and dice loss `[3, L]`, and their weighted sum if the kernel computes it."""
        focal, dice = segment_losses_unchecked(
            layers.predictions, targets, assignment, self.alpha, self.gamma
        )
        class_loss, weight = self._class_loss(layers.class_logits, targets, assignment)
        return loss_sums(focal, dice, class_loss, weight, num_masks, self._weights())

    def _weights(self) -> tuple[float, float, float]:
        weights = self.weights
        return weights["loss_ce"], weights["loss_mask"], weights["loss_dice"]

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Compute the weighted sum, 0-dim, of the losses that `forward` returns.

        Args:
            losses: the losses by name; some may be missing.

        Raises:
            ValueError: `losses` has a name that `forward` does not return.
        """
        if isinstance(losses, LossesWithTotal):
            total = losses.total_of(self._weights())
            if total is not None:
                return total
        kinds: dict[str, list[Tensor]] = {}
        for name, loss in losses.items():
            kind = _LOSS_NAME.fullmatch(name)
            if kind is None:
                raise ValueError(
                    f"losses must have the names that the criterion gives, got {name!r}"
                )
            kinds.setdefault(kind[1], []).append(loss)
        # Use few operators: on a GPU, each is one launch in the forward and one in the backward
        # pass. Every kind has the same number of layers unless the caller removed some losses.
        if len({len(of_layers) for of_layers in kinds.values()}) == 1:
            stacked = torch.stack([loss for of_layers in kinds.values() for loss in of_layers])
            sums = stacked.view(len(kinds), -1).sum(1).unbind()
        else:
            sums = tuple(torch.stack(of_layers).sum() for of_layers in kinds.values())
        first, *others = kinds
        total = self.weights[first] * sums[0]
        for other, loss in zip(others, sums[1:], strict=True):
            total = torch.add(total, loss, alpha=self.weights[other])
        return total

    def match(
        self,
        outputs: Mapping[str, Any],
        targets: SegmentTargets | Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Find the query of each segment in each layer. Not differentiable.

        Args:
            outputs, targets: as in `forward`.

        Returns:
            `[L, B, T]` int64, −1 for a segment without a query; the last layer is the final
            prediction.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        groups, targets = self._check(outputs, targets)
        return self._match(groups, targets)

    @torch.no_grad()
    def _match(self, groups: list[_Layers], targets: SegmentTargets) -> Tensor:
        if self.matching == "fixed":
            return self._fixed(sum(len(layers.class_logits) for layers in groups), targets)
        options = CostOptions(
            class_weight=self.weights["loss_ce"],
            mask_weight=self.weights["loss_mask"],
            dice_weight=self.weights["loss_dice"],
            alpha=self.alpha,
            gamma=self.gamma,
        )
        costs = [matching_cost_unchecked(*layers, targets, options) for layers in groups]
        queries = min(cost.shape[2] for cost in costs)
        if targets.max_count > queries and not self._warned:
            self._warned = True
            warnings.warn(
                f"an image has {targets.max_count} segments, more than the {queries} queries: "
                f"only the {queries} that match best are used for training (reported once)",
                stacklevel=3,
            )
        # Layers with the same number of queries (usually all of them) are solved in one batch.
        if len({cost.shape[2] for cost in costs}) == 1 < len(costs):
            costs = [torch.cat(costs)]
        assignments = [self._assign(cost, targets) for cost in costs]
        return torch.cat(assignments) if len(assignments) > 1 else assignments[0]

    def _assign(self, cost: Tensor, targets: SegmentTargets) -> Tensor:
        """`[L, B, T]` for `cost [L, B, Q, T]`."""
        # Segments are the rows, as the solver works row by row and there are fewer than queries.
        assignment, status = batch_linear_assignment_with_status(
            cost.transpose(-1, -2), row_counts=targets.counts_tensor()
        )
        if not (is_transformed() or status.is_meta):  # a transformation allows no side effect
            self._count(status)
        return assignment

    def _count(self, status: Tensor) -> None:
        """Count the problems with costs that are not finite: any bit of their status says so."""
        if self.bad_costs.device != status.device:
            self.bad_costs = copied_to(self.bad_costs, status.device)
        self.bad_costs = usable_by_autograd(self.bad_costs)
        # In place, for CUDA graphs; as a plain tensor, although predictions may be of a subclass.
        self.bad_costs += without_subclass((status != 0).sum())

    def _fixed(self, num_layers: int, targets: SegmentTargets) -> Tensor:
        """The query of each segment is its class; later segments of a class have none."""
        labels = targets.padded_labels(fill=-1)
        repeated = (labels[:, :, None] == labels[:, None, :]).tril(-1).any(2)
        # An unchecked label out of range makes the class loss NaN; here, keep the index in bounds.
        queries = labels.clamp(-1, self.num_classes - 1).masked_fill(repeated, -1)
        return queries.expand(num_layers, -1, -1).contiguous()

    def _class_loss(
        self, class_logits: Tensor, targets: SegmentTargets, assignment: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over queries and images, `[L]`, of the weighted cross-entropy and of the
        weights."""
        per_class = self.class_weights
        if per_class is not None and per_class.device != class_logits.device:
            self.class_weights = per_class = per_class.to(class_logits.device)
        loss, weight = sum_class_loss(
            class_logits, targets, assignment, self.no_object_weight, per_class
        )
        return loss, mean_over_processes(weight) if self.class_loss == "over_all" else weight

    def _check(
        self,
        outputs: Mapping[str, Any],
        targets: SegmentTargets | Sequence[Mapping[str, Tensor]],
    ) -> tuple[list[_Layers], SegmentTargets]:
        """Check and return predictions (earlier layers first) and targets, for unchecked calls."""
        given = read_outputs(outputs)
        if not isinstance(targets, SegmentTargets):
            targets = _read_targets(targets)
        groups = []
        for class_logits, mask_embed, pixel_features in given:
            predictions = check_predictions(mask_embed, pixel_features)
            check_targets(targets, predictions)
            check_floating("class_logits", class_logits)
            check_device("class_logits", class_logits, predictions.embed.device)
            expected = [*predictions.embed.shape[:3], self.num_classes + 1]
            if list(class_logits.shape) != expected:
                raise ValueError(
                    f"class logits must be {expected} (layers, images, queries, classes + no "
                    f"object), got {list(class_logits.shape)}"
                )
            if self.matching == "fixed" and expected[2] != self.num_classes:
                raise ValueError(
                    f"matching='fixed' needs one query per class ({self.num_classes}), got "
                    f"{expected[2]} queries"
                )
            groups.append(_Layers(class_logits, predictions))
        targets.check_labels(self.num_classes)
        return groups, targets


@contextlib.contextmanager
def remembering_nothing(criterion: MaskFormerCriterion) -> Iterator[None]:
    """Restore `bad_costs` after the block, and suppress the warning of too many segments in it."""
    counted, warned = criterion.bad_costs.clone(), criterion._warned
    criterion._warned = True
    try:
        yield
    finally:
        criterion.bad_costs.copy_(counted)
        criterion._warned = warned


def loss_names(layers: int) -> list[str]:
    """Return the names of all losses in the criterion's order: the last layer comes first."""
    earlier = (f"{kind}_{layer}" for layer in range(layers - 1) for kind in _KINDS)
    return [*_KINDS, *earlier]


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def kept_weights(
    before: Tensor | None, after: Tensor | None, given: Tensor | None
) -> Tensor | None:
    """Return the class weights with the device and dtype of `after` and their values of `before`
    (on "meta": of `given`, on the CPU): `to_empty` loses them, and no checkpoint holds them."""
    if before is None or after is None or given is None:
        return after
    return (given if before.is_meta else before).to(after)


def _check_weights(class_weights: Sequence[float] | Tensor, num_classes: int) -> Tensor:
    device = class_weights.device if isinstance(class_weights, Tensor) else "cpu"
    weights = torch.as_tensor(class_weights, dtype=torch.float32, device=device).detach().clone()
    if list(weights.shape) != [num_classes]:
        raise ValueError(
            f"class_weights must be [{num_classes}], one per class, got {list(weights.shape)}"
        )
    if not bool((weights >= 0).all() & weights.isfinite().all()):
        raise ValueError(f"class_weights must be finite and not negative, got {weights.tolist()}")
    return weights


def read_outputs(outputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return class logits, mask embeddings and pixel features (or mask logits and None), in one
    entry if all layers can be viewed as one tensor or stacked cheaply, else in one per layer."""
    if "mask_embed" in outputs:
        class_logits, mask_embed = _need(outputs, "class_logits"), _need(outputs, "mask_embed")
        if class_logits.ndim == mask_embed.ndim == 3:  # a single layer; the operations add the axis
            class_logits = class_logits[None]
        return [(class_logits, mask_embed, _need(outputs, "pixel_features"))]
    predictions = [*(outputs.get("aux_outputs") or ()), outputs]
    logits = [_need(layer, "pred_logits") for layer in predictions]
    masks = [_need(layer, "pred_masks") for layer in predictions]
    # Dense mask logits are large: do not copy them, except small ones on a GPU.
    all_masks = stack_layers(masks, _MAX_COPIED_BYTES if masks[0].is_cuda else 0)
    all_logits = None if all_masks is None else stack_layers(logits, math.inf)
    if all_masks is not None and all_logits is not None:
        return [(all_logits, all_masks, None)]
    return [(x[None], y[None], None) for x, y in zip(logits, masks, strict=True)]


def _need(outputs: Mapping[str, Any], key: str) -> Tensor:
    if key not in outputs:
        raise ValueError(
            "outputs must have the keys class_logits, mask_embed and pixel_features, or "
            f"pred_logits and pred_masks; {key} is missing from {sorted(outputs)}"
        )
    tensor = outputs[key]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"outputs[{key!r}] must be a tensor, got {type(tensor).__name__}")
    return tensor


def _read_targets(targets: Sequence[Mapping[str, Tensor]]) -> SegmentTargets:
    for image, target in enumerate(targets):
        if not isinstance(target, Mapping) or not {"labels", "masks"} <= target.keys():
            raise ValueError(
                f"targets must be SegmentTargets or dicts with labels and masks; image {image} is "
                f"{sorted(target) if isinstance(target, Mapping) else type(target).__name__}"
            )
    return SegmentTargets.from_masks([t["masks"] for t in targets], [t["labels"] for t in targets])
