"""The losses of layers and their weighted total: one kernel on a GPU, few operators elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import native_problem, without_autocast
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.loss_sums import reference
from mfkernels.ops.loss_sums.operator import summed


@served_by_pytorch_where_kernels_fail("loss_sums")
def loss_sums(
    focal: Tensor,
    dice: Tensor,
    class_loss: Tensor,
    class_weight: Tensor,
    num_masks: float | Tensor,
    weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor | None]:
    """Means over queries and segments, which the criterion returns.

    Args:
        focal, dice: `[L, B, T]`, the losses of segments.
        class_loss: `[L]`, weighted entropies, summed over queries and images.
        class_weight: `[L]`, the sum of their weights.
        num_masks: what the losses of segments are divided by, a number or 0-dim.
        weights: of class, mask and dice loss in the total.

    Returns:
        `losses [3, L]`: class, mask and dice loss of each layer; and their weighted sum, 0-dim, or
        None where that takes as many operators as the caller would need.
    """
    if isinstance(num_masks, Tensor) and num_masks.device != focal.device:
        num_masks = num_masks.to(focal.device, non_blocking=True)
    with without_autocast(focal.device):
        differentiable = isinstance(num_masks, Tensor) and num_masks.requires_grad
        # No operator that could be traced; see operator.py.
        plain = torch.compiler.is_compiling() or type(focal) is not Tensor or differentiable
        problem = native_problem(focal, class_loss)
        if plain or backend.select("loss_sums", focal.device, problem) != "native":
            return reference.loss_sums(focal, dice, class_loss, class_weight, num_masks), None
        return summed(focal, dice, class_loss, class_weight, num_masks, weights)
