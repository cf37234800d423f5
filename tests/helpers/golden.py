"""A golden example: inputs from formulas, not stored arrays; results from the official code."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_CLASSES = 3

FINAL_COST = (
    (
        (12.843832, 11.500545),
        (13.834348, 12.330345),
        (11.390298, 11.366888),
        (6.965956, 10.747072),
        (3.420492, 10.465441),
    ),
    (
        (5.013752, 9.728674, 13.736246),
        (11.396777, 11.234108, 15.846501),
        (16.648476, 11.713490, 14.834826),
        (16.845530, 10.584960, 12.165915),
        (12.115713, 9.676786, 9.278274),
    ),
)
FINAL_ASSIGNMENT = ((4, 3, -1), (0, 3, 4))
AUX_ASSIGNMENT = ((3, 4, -1), (4, 2, 3))
LOSSES = {
    "loss_ce": 1.950706,
    "loss_mask": 0.384190,
    "loss_dice": 0.543624,
    "loss_ce_0": 3.192562,
    "loss_mask_0": 0.321530,
    "loss_dice_0": 0.649201,
}
LOSSES_WITHOUT_IMAGE_1 = {"loss_ce": 2.062886, "loss_mask": 0.332290, "loss_dice": 0.438825}
LOSSES_WITHOUT_SEGMENTS = {"loss_ce": 2.814662, "loss_mask": 0.0, "loss_dice": 0.0}


def predictions(phase: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Class logits `[2, 5, 4]` and mask logits `[2, 5, 4, 6]`."""
    b = torch.arange(2, dtype=torch.float64)
    q = torch.arange(5, dtype=torch.float64)[:, None]
    c = torch.arange(4, dtype=torch.float64)
    i = torch.arange(4, dtype=torch.float64)[:, None]
    j = torch.arange(6, dtype=torch.float64)
    logits = 2 * torch.sin(0.7 * q + 1.3 * c + 0.5 * b[:, None, None] + phase)
    masks = 3 * torch.sin(
        0.9 * q[..., None] + 0.8 * i - 0.6 * j + 0.4 * b[:, None, None, None] + phase
    )
    return logits.to(dtype), masks.to(dtype)


def official_outputs(
    *, aux: bool = True, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor | list[dict[str, Tensor]]]:
    logits, masks = predictions(0.0, dtype)
    outputs: dict[str, Tensor | list[dict[str, Tensor]]] = {
        "pred_logits": logits,
        "pred_masks": masks,
    }
    if aux:
        logits, masks = predictions(1.0, dtype)
        outputs["aux_outputs"] = [{"pred_logits": logits, "pred_masks": masks}]
    return outputs


def targets(*, empty: tuple[int, ...] = ()) -> list[dict[str, Tensor]]:
    """Targets in the official format for two images; those in `empty` have no segments."""
    row = torch.arange(16)[:, None].expand(16, 24)
    column = torch.arange(24).expand(16, 24)
    first = torch.stack([row < 8, (column >= 12) & (row >= 8)])
    second = torch.stack(
        [
            column < 6,
            (column >= 6) & (column < 15) & (row % 2 == 0),
            row + column >= 26,
        ]
    )
    both = [
        {"labels": torch.tensor([2, 0]), "masks": first},
        {"labels": torch.tensor([1, 1, 0]), "masks": second},
    ]
    for image in empty:
        both[image] = {name: tensor[:0] for name, tensor in both[image].items()}
    return both
