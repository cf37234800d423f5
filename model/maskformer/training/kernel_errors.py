"""How far the native criterion is from plain PyTorch's, on batches that a run trains on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import mfkernels
from mfkernels.criterion import remembering_nothing
from mfkernels.verification import difference


def kernel_errors(
    criterion: mfkernels.MaskFormerCriterion,
    predictions: Mapping[str, Tensor],
    targets: mfkernels.SegmentTargets,
    **options: Tensor,
) -> dict[str, float]:
    """Compares the criterion and its backward pass with those of plain PyTorch.

    Args:
        criterion: counts no bad costs here.
        predictions: of the model; they are not changed, and get no gradient.
        targets: of the batch.
        options: of the criterion.

    Returns:
        `kernel_loss_error`, of the total loss, and `kernel_gradient_error`, the largest one of the
        gradients of the predictions: differences by the largest value. Two queries that cost a
        segment the same may be matched differently, which shows in the gradients alone.
    """
    (loss, *gradients), (plain_loss, *plain_gradients) = (
        _loss_and_gradients(backend, criterion, predictions, targets, options)
        for backend in ("auto", "reference")
    )
    pairs = zip(gradients, plain_gradients, strict=True)
    return {
        "kernel_loss_error": difference(loss, plain_loss),
        "kernel_gradient_error": max(difference(a, b) for a, b in pairs),
    }


def _loss_and_gradients(
    backend: mfkernels.backend.Backend,
    criterion: mfkernels.MaskFormerCriterion,
    predictions: Mapping[str, Tensor],
    targets: mfkernels.SegmentTargets,
    options: Mapping[str, Tensor],
) -> list[Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in predictions.items()}
    quietly = remembering_nothing(criterion)
    with quietly, mfkernels.use_backend(backend), torch.enable_grad():
        total = criterion.total(criterion(leaves, targets, **options))
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return [total.detach(), *gradients]
