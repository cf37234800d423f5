"""The autograd function of the kernel.

The gradient is linear in the incoming gradients, with factors that the kernel has stored. The
kernel is not registered as an operator of PyTorch: under `torch.compile`, the reference is used,
which the compiler fuses.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

TRITON = "mfkernels.ops.loss_sums.triton_launch"


class _LossSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        focal: Tensor,
        dice: Tensor,
        class_loss: Tensor,
        class_weight: Tensor,
        num_masks: float | Tensor,
        weights: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        kernel = importlib.import_module(TRITON).loss_sums
        losses, total, factors = kernel(focal, dice, class_loss, class_weight, num_masks, weights)
        ctx.shape = focal.shape
        ctx.save_for_backward(factors)
        ctx.set_materialize_grads(False)
        return losses, total

    @staticmethod
    def backward(
        ctx: Any, grad_losses: Tensor | None, grad_total: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (factors,) = ctx.saved_tensors
        of_each, of_total = factors.unbind()
        gradient = None if grad_total is None else grad_total * of_total
        if grad_losses is not None:
            more = grad_losses * of_each
            gradient = more if gradient is None else gradient + more
        if gradient is None:
            return (None,) * 6
        of_class, of_focal, of_dice = gradient.unbind()
        spread = (grad[:, None, None].expand(ctx.shape) for grad in (of_focal, of_dice))
        return (*spread, of_class, None, None, None)


def summed(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`losses [3, L]` and their weighted total; see `loss_sums`."""
    losses, total = _LossSums.apply(*arguments)
    return losses, total
