"""Launches of the Triton kernels of the focal and dice loss."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels.ops.focal_dice.triton_kernels import (
    elements_gradient_kernel,
    elements_kernel,
    focal_dice_gradient_kernel,
    focal_dice_sums_kernel,
    focal_dice_totals_kernel,
)
from mfkernels.triton import launcher
from mfkernels.triton.arguments import FocalParameters, LossGradients
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import check_floats

CHUNK = 8192
"""Elements of a row that one program sums up."""
BLOCK = 2048
SUM_BLOCK = 1024
"""Four elements per thread: with eight, the four accumulators spill registers on some GPUs."""


def _as_stored(targets: Tensor) -> Tensor:
    """Contiguous targets in a dtype that the kernels can load; bool is viewed as uint8."""
    targets = targets.contiguous()
    return targets.view(torch.uint8) if targets.dtype == torch.bool else targets


def focal_dice(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `mfkernels::focal_dice`.

    Takes `logits` and `targets [M, P]`. Returns `focal` and `dice [M]`, and `sums [M, 3]` for the
    backward pass: Σ s y, Σ s and Σ y of each row, s = sigmoid(logits). All results are float32.
    """
    check_floats("focal_dice", logits)
    rows, elements = logits.shape
    focal = logits.new_empty(rows, dtype=torch.float32)
    dice = logits.new_empty(rows, dtype=torch.float32)
    sums = logits.new_empty((rows, 3), dtype=torch.float32)
    chunks = cdiv(elements, CHUNK)
    partial = logits.new_empty((rows, chunks, 4), dtype=torch.float32)
    launcher.launch(
        focal_dice_sums_kernel,
        (rows * chunks,),
        logits_ptr=logits.contiguous(),
        targets_ptr=_as_stored(targets),
        partial_ptr=partial,
        elements=elements,
        chunks=chunks,
        focal=FocalParameters.of(alpha, gamma),
        SQUARE=gamma == 2,
        ELEMENTS=CHUNK,
        BLOCK=SUM_BLOCK,
        num_warps=8,
    )
    launcher.launch(
        focal_dice_totals_kernel,
        (rows,),
        partial_ptr=partial,
        focal_ptr=focal,
        dice_ptr=dice,
        sums_ptr=sums,
        chunks=chunks,
        elements=float(elements),
        BLOCK=min(power_of_2(chunks), 1024),
        num_warps=1 if chunks <= 128 else 4,
    )
    return focal, dice, sums


def focal_dice_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    logits: Tensor,
    targets: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """The operator `mfkernels::focal_dice_backward`.

    `grad_focal` and `grad_dice [M]`; the others as in `focal_dice`. Returns `grad_logits [M, P]`.
    """
    rows, elements = logits.shape
    grad_logits = logits.new_empty(logits.shape)
    tiles = cdiv(elements, BLOCK)
    launcher.launch(
        focal_dice_gradient_kernel,
        (rows * tiles,),
        grad=LossGradients(grad_focal, grad_dice),
        sums_ptr=sums,
        logits_ptr=logits.contiguous(),
        targets_ptr=_as_stored(targets),
        grad_logits_ptr=grad_logits,
        elements=elements,
        tiles=tiles,
        grad_focal_stride=grad_focal.stride(0),
        grad_dice_stride=grad_dice.stride(0),
        focal=FocalParameters.of(alpha, gamma),
        SQUARE=gamma == 2,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return grad_logits


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """The operator `mfkernels::sigmoid_focal_loss`; logits, targets and losses have one shape."""
    check_floats("sigmoid_focal_loss", logits)
    loss = logits.new_empty(logits.shape)
    launcher.launch(
        elements_kernel,
        (cdiv(logits.numel(), BLOCK),),
        logits_ptr=logits.contiguous(),
        targets_ptr=_as_stored(targets),
        loss_ptr=loss,
        elements=logits.numel(),
        focal=FocalParameters.of(alpha, gamma),
        SQUARE=gamma == 2,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return loss


def sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """The operator `mfkernels::sigmoid_focal_loss_backward`; all tensors have one shape."""
    grad_logits = logits.new_empty(logits.shape)
    is_expanded = all(stride == 0 for stride in grad.stride())
    launcher.launch(
        elements_gradient_kernel,
        (cdiv(logits.numel(), BLOCK),),
        grad_ptr=grad if is_expanded else grad.contiguous(),
        logits_ptr=logits.contiguous(),
        targets_ptr=_as_stored(targets),
        grad_logits_ptr=grad_logits,
        elements=logits.numel(),
        grad_stride=0 if is_expanded else 1,
        focal=FocalParameters.of(alpha, gamma),
        SQUARE=gamma == 2,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return grad_logits
