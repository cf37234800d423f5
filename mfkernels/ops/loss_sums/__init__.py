"""The losses of all layers and their total: one kernel on a GPU, a few operators elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import native_problem, without_autocast
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.loss_sums import reference
from mfkernels.ops.loss_sums.operator import summed
from mfkernels.targets import copied_to


@served_by_pytorch_where_kernels_fail("loss_sums")
def loss_sums(
    focal: Tensor,
    dice: Tensor,
    class_loss: Tensor,
    class_weight: Tensor,
    num_masks: float | Tensor,
    weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor | None]:
    """Reduce the losses of segments and queries to those that the criterion returns.

    Args:
        focal, dice: `[L, B, T]`, the losses of the segments.
        class_loss: `[L]`, weighted cross-entropies, summed over queries and images.
        class_weight: `[L]`, the sums of their weights.
        num_masks: the divisor of the segment losses, a number or a 0-dim tensor.
        weights: the weights of class, mask and dice loss in the total.

    Returns:
        The class, mask and dice loss of each layer, `[3, L]`, and their weighted sum, 0-dim. The
        sum is None if there is no kernel that computes it.
    """
    if isinstance(num_masks, Tensor) and num_masks.device != focal.device:
        num_masks = copied_to(num_masks, focal.device)
    with without_autocast(focal.device):
        differentiable = isinstance(num_masks, Tensor) and num_masks.requires_grad
        # The kernel is not an operator of PyTorch, so that it cannot be traced; see operator.py.
        plain = torch.compiler.is_compiling() or type(focal) is not Tensor or differentiable
        problem = native_problem(focal, class_loss)
        if plain or backend.select("loss_sums", focal.device, problem) != "native":
            return reference.loss_sums(focal, dice, class_loss, class_weight, num_masks), None
        return summed(focal, dice, class_loss, class_weight, num_masks, weights)
