"""The loss of each architecture: mask classification, or the per-pixel baselines' cross-entropy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mfkernels
from maskformer.config.schema import Config
from maskformer.errors import ConfigError
from maskformer.modeling.outputs import resize
from maskformer.system.text import escape
from mfkernels import SegmentTargets
from mfkernels.criterion import kept_weights

VOID = -1


class PerPixelCriterion(nn.Module):
    """Cross-entropy of upsampled class logits, for the baselines of the paper (§4.1).

    All layers have the same weight, and void pixels are ignored. If all pixels are void, the loss
    is zero.

    Args:
        class_weights: `[K]`, the weights of the classes as in `F.cross_entropy`. None means 1 for
            every class.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        given = None if class_weights is None else torch.tensor(class_weights, device="cpu")
        self._given_weights = given
        self.register_buffer("class_weights", given, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerPixelCriterion:
        before = self.class_weights
        super()._apply(fn, recurse)
        self.class_weights = kept_weights(before, self.class_weights, self._given_weights)
        return self

    def forward(self, outputs: Mapping[str, Tensor], targets: SegmentTargets) -> dict[str, Tensor]:
        """Return `loss_sem_seg` of the last layer and `loss_sem_seg_{i}` of the others.

        Args:
            outputs: `pixel_logits [L, B, K, h, w]`.
            targets: disjoint segments (a label map) of size `[B, H, W]`.
        """
        classes = class_maps(targets)
        *auxiliary, final = outputs["pixel_logits"].float().unbind()
        losses = {"loss_sem_seg": self._layer(final, classes)}
        for index, logits in enumerate(auxiliary):
            losses[f"loss_sem_seg_{index}"] = self._layer(logits, classes)
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to minimise: the sum over layers."""
        return torch.stack(list(losses.values())).sum()

    def _layer(self, logits: Tensor, classes: Tensor) -> Tensor:
        height, width = classes.shape[-2:]
        rows, columns = logits.shape[-2:]
        # As inference does, upsample by the stride. The size need not be a multiple of it, and
        # backbones round either up or down.
        enlarged = (round(height / rows) * rows, round(width / columns) * columns)
        full = resize(logits, enlarged)[..., :height, :width]
        if full.shape[-2:] != classes.shape[-2:]:
            full = resize(full, (height, width))
        weights = None if self.class_weights is None else self.class_weights.to(full.dtype)
        loss = F.cross_entropy(full, classes, weights, ignore_index=VOID, reduction="sum")
        labelled = classes != VOID
        if weights is None:
            return loss / labelled.sum().clamp(min=1)
        total = weights[classes.clamp(min=0)].where(labelled, 0.0).sum()
        return loss / total.where(total > 0, 1.0)


def class_maps(targets: SegmentTargets) -> Tensor:
    """Return the class of each pixel, `[B, H, W]` int64, -1 for void.

    Raises:
        ValueError: the targets are stored as masks, which may overlap.
    """
    if targets.label_map is None:
        raise ValueError(
            "targets: a per-pixel loss needs disjoint segments (SegmentTargets.from_label_maps)"
        )
    segments = targets.label_map.long()
    if targets.max_count == 0:
        return torch.full_like(segments, VOID)
    labels = targets.padded_labels()
    classes = labels.gather(1, segments.clamp(min=0).flatten(1)).view_as(segments)
    return classes.masked_fill(segments < 0, VOID)


def build_criterion(
    config: Config, classes: Sequence[str] | None = None
) -> mfkernels.MaskFormerCriterion | PerPixelCriterion:
    """Build the criterion of a recipe whose number of classes is known.

    Args:
        config: the recipe.
        classes: the names of the classes, needed for class weights by name.

    Raises:
        ConfigError: the number of classes is missing, or does not match the class weights or the
            number of queries.
    """
    count = config.model.num_classes
    given = config.criterion.class_weights
    names = classes if classes is not None else [str(index) for index in range(count or 0)]
    weights = None if given is None else weights_of_classes(given, names)
    if config.model.architecture != "maskformer":
        return PerPixelCriterion(weights)
    if count is None:
        raise ConfigError("model.num_classes: the criterion needs the number of classes, got None")
    queries = config.model.decoder.queries
    if config.criterion.matching == "fixed" and queries != count:
        raise ConfigError(
            "criterion.matching: 'fixed' gives each class a query of its own, but "
            f"model.decoder.queries is {queries}; expected the number of classes, {count}"
        )
    options = config.criterion.model_dump(exclude={"class_weights"})
    return mfkernels.MaskFormerCriterion(count, **options, class_weights=weights)


def weights_of_classes(
    given: Mapping[str, float] | Sequence[float], classes: Sequence[str]
) -> list[float]:
    """Return one weight per class; a class that a mapping does not name has weight 1.

    Raises:
        ConfigError: the number of weights is wrong, or a name is not that of a class.
    """
    if not isinstance(given, Mapping):
        if len(given) != len(classes):
            raise ConfigError(
                f"criterion.class_weights must hold one weight per class, got {len(given)} for "
                f"{len(classes)} classes; to set only some, use a mapping from names to weights"
            )
        return list(given)
    for name in given:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"classes: {', '.join(classes)}"
            text = escape(f"no class is named '{name}'; {hint}")
            raise ConfigError(f"criterion.class_weights: {text}")
    return [given.get(name, 1.0) for name in classes]
