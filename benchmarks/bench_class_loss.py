"""Class loss for given matches, forward and backward.

The baseline (`reference`) does what the official code does: build a target for every query, then
compute the cross-entropy layer by layer. There is no native CPU kernel, so on a CPU `native` runs
PyTorch operators too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider
from harness.inputs import CASES, Inputs, sizes_of
from harness.losses import loss_comparison
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.class_loss import class_loss

NO_OBJECT_WEIGHT = 0.1


def native(inputs: Inputs, matches: Tensor) -> Tensor:
    loss, weight = class_loss(inputs.class_logits, inputs.targets, matches, NO_OBJECT_WEIGHT)
    return loss / weight


def reference(inputs: Inputs, matches: Tensor) -> Tensor:
    no_object = inputs.class_logits.shape[-1] - 1
    weight = inputs.class_logits.new_ones(no_object + 1)
    weight[-1] = NO_OBJECT_WEIGHT
    labels = torch.stack([target["labels"] for target in inputs.official_targets])
    losses = []
    for logits, queries in zip(inputs.class_logits, matches, strict=True):
        target = queries.new_full(logits.shape[:2], no_object).scatter(1, queries, labels)
        losses.append(F.cross_entropy(logits.mT, target, weight))
    return torch.stack(losses)


def provider(loss: Callable[..., Tensor], inputs: Inputs, matches: Tensor) -> Provider:
    return Provider(
        lambda: loss(inputs, matches),
        lambda losses: torch.autograd.grad(losses.sum(), inputs.class_logits),
    )


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    sizes = sizes_of(case, shrink)
    logits = sizes.layers * sizes.images * sizes.queries * (sizes.classes + 1)
    # Minimum memory traffic: the logits are read twice and their gradient is written once.
    floor = Floor(0, 3 * sizes.dtype.itemsize * logits)
    return loss_comparison(native, reference, provider, sizes, device, tolerance=1e-5, floor=floor)


test_class_loss = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
