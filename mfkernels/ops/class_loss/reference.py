"""Weighted cross-entropy of all queries, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.common.logits import at_least_float32
from mfkernels.targets import SegmentTargets


def class_loss(
    class_logits: Tensor,
    targets: SegmentTargets,
    assignment: Tensor,
    no_object_weight: float | Tensor,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums over queries and images of weight · cross-entropy, `[L]`, and of weights, `[L]`."""
    layers, images, queries, classes = class_logits.shape
    num_classes = classes - 1
    logits = at_least_float32(class_logits)
    labels = targets.padded_labels()
    is_valid = (labels >= 0) & (labels < num_classes)
    labels = labels.clamp(0, num_classes - 1).expand(layers, -1, -1)
    # Segments without a query scatter to an extra column, which is sliced off again.
    query = assignment.where(assignment >= 0, queries)
    target = assignment.new_full((layers, images, queries + 1), num_classes)
    target = target.scatter(2, query, labels)[:, :, :queries]
    weight = logits.new_ones(num_classes) if class_weights is None else class_weights.to(logits)
    if isinstance(no_object_weight, Tensor):
        weight = torch.cat((weight, no_object_weight.to(weight)[None]))
    else:
        weight = F.pad(weight, (0, 1), value=no_object_weight)
    entropy = F.cross_entropy(
        logits.flatten(0, 2), target.flatten(), weight=weight, reduction="none"
    )
    loss = entropy.reshape(layers, images * queries).sum(1)
    return loss.where(is_valid.all(), torch.nan), weight[target].flatten(1).sum(1)
