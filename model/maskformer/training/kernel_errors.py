"""Comparison of the kernels of the criterion with plain PyTorch on batches of a training run."""

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
    """Compare the criterion and its backward pass with those of plain PyTorch.

    Args:
        criterion: the criterion of the run. Its count of bad costs is left unchanged.
        predictions: the outputs of the model, which are left unchanged and get no gradient.
        targets: the targets of the batch.
        options: further arguments of the criterion.

    Returns:
        `kernel_loss_error`, the error of the total loss, and `kernel_gradient_error`, the largest
        error of a gradient with respect to the predictions; both relative to the largest value. If
        two queries have equal cost for a segment, the backends may match different ones, which
        changes only the gradients.
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
