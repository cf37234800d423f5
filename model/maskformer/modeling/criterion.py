"""The loss of each architecture: mask classification, or the per-pixel baselines' cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mfkernels
from maskformer.config.schema import Config
from maskformer.errors import ConfigError
from mfkernels import SegmentTargets

VOID = -1


class PerPixelCriterion(nn.Module):
    """Cross-entropy of up-sampled class logits, for the baselines of the paper (§4.1).

    Every layer weighs the same; void pixels do not count. A batch without labelled pixels gives
    zero.
    """

    def forward(self, outputs: Mapping[str, Tensor], targets: SegmentTargets) -> dict[str, Tensor]:
        """Returns `loss_sem_seg` of the last layer and `loss_sem_seg_{i}` of the others.

        Args:
            outputs: `pixel_logits` `[L, B, K, h, w]`.
            targets: disjoint segments (a label map) of size `[B, H, W]`.
        """
        classes = class_maps(targets)
        *auxiliary, final = outputs["pixel_logits"].float().unbind()
        losses = {"loss_sem_seg": self._layer(final, classes)}
        for index, logits in enumerate(auxiliary):
            losses[f"loss_sem_seg_{index}"] = self._layer(logits, classes)
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss to minimise: the sum over layers."""
        return torch.stack(list(losses.values())).sum()

    @staticmethod
    def _layer(logits: Tensor, classes: Tensor) -> Tensor:
        full = F.interpolate(logits, size=classes.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(full, classes, ignore_index=VOID, reduction="sum")
        return loss / (classes != VOID).sum().clamp(min=1)


def class_maps(targets: SegmentTargets) -> Tensor:
    """The class of every pixel, `[B, H, W]` int64, void = -1.

    Raises:
        ValueError: targets stored as overlapping masks.
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


def build_criterion(config: Config) -> mfkernels.MaskFormerCriterion | PerPixelCriterion:
    """The criterion of a recipe whose number of classes is known."""
    if config.model.architecture != "maskformer":
        return PerPixelCriterion()
    if config.model.num_classes is None:
        raise ConfigError("model.num_classes: needed to build the criterion, got None")
    return mfkernels.MaskFormerCriterion(config.model.num_classes, **config.criterion.model_dump())
