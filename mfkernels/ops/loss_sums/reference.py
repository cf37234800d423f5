"""Compute the losses of layers from those of segments and queries."""

from __future__ import annotations

import torch
from torch import Tensor


def loss_sums(
    focal: Tensor,
    dice: Tensor,
    class_loss: Tensor,
    class_weight: Tensor,
    num_masks: float | Tensor,
) -> Tensor:
    """`[3, L]`: class, mask and dice loss of each layer."""
    of_masks = torch.stack((focal, dice)).sum((2, 3)) / num_masks
    return torch.cat(((class_loss / class_weight)[None], of_masks))
