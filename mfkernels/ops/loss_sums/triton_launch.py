"""Launch of the Triton kernel that reduces the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels.ops.loss_sums.triton_kernels import Weights, loss_sums_kernel
from mfkernels.triton import launcher
from mfkernels.triton.launcher import power_of_2


def loss_sums(
    focal: Tensor,
    dice: Tensor,
    class_loss: Tensor,
    class_weight: Tensor,
    num_masks: float | Tensor,
    weights: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """`losses [3, L]`, their total and `factors [2, 3, L]`, all float32; see the kernel."""
    layers, images, max_count = focal.shape
    losses = focal.new_empty((3, layers), dtype=torch.float32)
    factors = focal.new_empty((2, 3, layers), dtype=torch.float32)
    total = focal.new_empty((), dtype=torch.float32)
    launcher.launch(
        loss_sums_kernel,
        (1,),
        focal_ptr=focal.contiguous(),
        dice_ptr=dice.contiguous(),
        class_loss_ptr=class_loss.contiguous(),
        class_weight_ptr=class_weight.contiguous(),
        num_masks_ptr=num_masks if isinstance(num_masks, Tensor) else None,
        losses_ptr=losses,
        factors_ptr=factors,
        total_ptr=total,
        layers=layers,
        size=images * max_count,
        num_masks=1.0 if isinstance(num_masks, Tensor) else float(num_masks),
        weights=Weights(*map(float, weights)),
        LAYERS=power_of_2(layers),
        BLOCK=512,
        num_warps=4,
    )
    return losses, total, factors
