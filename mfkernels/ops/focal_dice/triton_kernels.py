"""Focal and dice loss of logits that are already there, and the focal loss of each element.

Rows are cut into chunks, one program each, so that a few long rows fill a GPU too. Chunks leave
partial sums, which a second kernel adds in a fixed order. The gradient needs three sums a row.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.math import exp_of_negative, reciprocal, sigmoid_both
from mfkernels.triton.tensors import check_floats, focal_weights

ELEMENTS_OF_A_PROGRAM = 8192
BLOCK = 2048


@triton.jit
def entropy_and_scale(x, y, sigmoid, other, log1p, gamma, SQUARE: tl.constexpr):
    """Cross-entropy, the miss m = 1 − p_t, and m^γ; exact for targets 0 and 1, valid between."""
    entropy = y * (tl.maximum(-x, 0.0) + log1p) + (1.0 - y) * (tl.maximum(x, 0.0) + log1p)
    # The smallest normal number keeps 0^0 = 1 and the logarithm finite.
    miss = tl.maximum((1.0 - y) * sigmoid + y * other, 1.1754944e-38)
    if SQUARE:
        return entropy, miss, miss * miss
    return entropy, miss, exp_of_negative(gamma * tl.log(miss))


@triton.jit
def focal_slope(
    x,
    y,
    sigmoid,
    other,
    log1p,
    positive_weight,
    negative_weight,
    gamma,
    SQUARE: tl.constexpr,
):
    """d focal / d logit: m^γ (s − y + γ (1 − 2y) · entropy · s (1−s) / m), with α."""
    entropy, miss, scale = entropy_and_scale(x, y, sigmoid, other, log1p, gamma, SQUARE)
    weight = positive_weight * y + negative_weight * (1.0 - y)
    bend = gamma * (1.0 - 2.0 * y) * entropy * (sigmoid * other * reciprocal(miss))
    return weight * scale * ((1.0 - y) * sigmoid - y * other + bend)


@triton.jit
def sums_kernel(
    logits,
    targets,
    partial,
    elements,
    chunks,
    positive_weight,
    negative_weight,
    gamma,
    SQUARE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`partial [M, chunks, 4]`: Σ focal, Σ s y, Σ s, Σ y of a chunk of a row."""
    row, begin = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    begin = begin.to(tl.int64) * ELEMENTS
    logits += row * elements + begin
    targets += row * elements + begin
    number = tl.minimum(elements - begin, ELEMENTS).to(tl.int32)
    focal = tl.zeros([BLOCK], tl.float32)
    both = tl.zeros([BLOCK], tl.float32)
    all_sigmoid = tl.zeros([BLOCK], tl.float32)
    all_target = tl.zeros([BLOCK], tl.float32)
    for start in range(0, number, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < number
        x = tl.load(logits + p, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(targets + p, mask=inside, other=0).to(tl.float32)
        sigmoid, other, log1p = sigmoid_both(x)
        entropy, _, scale = entropy_and_scale(x, y, sigmoid, other, log1p, gamma, SQUARE)
        weight = positive_weight * y + negative_weight * (1.0 - y)
        focal += tl.where(inside, weight * scale * entropy, 0.0)
        both += sigmoid * y
        all_sigmoid += tl.where(inside, sigmoid, 0.0)
        all_target += y
    line = partial + tl.program_id(0).to(tl.int64) * 4
    tl.store(line, tl.sum(focal))
    tl.store(line + 1, tl.sum(both))
    tl.store(line + 2, tl.sum(all_sigmoid))
    tl.store(line + 3, tl.sum(all_target))


@triton.jit
def totals_kernel(partial, focal, dice, sums, chunks, elements, BLOCK: tl.constexpr):
    """`focal` and `dice [M]`, `sums [M, 3]` from the partial sums, a row each program."""
    row = tl.program_id(0).to(tl.int64)
    all_focal = tl.zeros([BLOCK], tl.float32)
    all_both = tl.zeros([BLOCK], tl.float32)
    all_sigmoid = tl.zeros([BLOCK], tl.float32)
    all_target = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        line = partial + (row * chunks + chunk) * 4
        all_focal += tl.load(line, mask=chunk < chunks, other=0.0)
        all_both += tl.load(line + 1, mask=chunk < chunks, other=0.0)
        all_sigmoid += tl.load(line + 2, mask=chunk < chunks, other=0.0)
        all_target += tl.load(line + 3, mask=chunk < chunks, other=0.0)
    both, sigmoid, target = tl.sum(all_both), tl.sum(all_sigmoid), tl.sum(all_target)
    tl.store(focal + row, tl.sum(all_focal) / elements)
    tl.store(dice + row, 1.0 - (2.0 * both + 1.0) / (sigmoid + target + 1.0))
    tl.store(sums + row * 3, both)
    tl.store(sums + row * 3 + 1, sigmoid)
    tl.store(sums + row * 3 + 2, target)


@triton.jit
def gradient_kernel(
    grad_focal,
    grad_dice,
    sums,
    logits,
    targets,
    grad_logits,
    elements,
    tiles,
    focal_step,
    dice_step,
    positive_weight,
    negative_weight,
    gamma,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`grad_logits [M, P]`, a tile of a row each program."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    by_focal = tl.load(grad_focal + row * focal_step) / elements
    by_dice = tl.load(grad_dice + row * dice_step)
    both, union = tl.load(sums + row * 3), tl.load(sums + row * 3 + 1) + 1.0
    union += tl.load(sums + row * 3 + 2)
    by_all = by_dice * (2.0 * both + 1.0) / (union * union)
    by_member = -2.0 * by_dice / union
    begin = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK
    start = row * elements + begin
    p = tl.arange(0, BLOCK)
    inside = p < elements - begin
    x = tl.load(logits + start + p, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets + start + p, mask=inside, other=0).to(tl.float32)
    sigmoid, other, log1p = sigmoid_both(x)
    slope = by_focal * focal_slope(
        x, y, sigmoid, other, log1p, positive_weight, negative_weight, gamma, SQUARE
    )
    slope += sigmoid * other * (by_all + by_member * y)
    tl.store(grad_logits + start + p, slope, mask=inside)


@triton.jit
def elements_kernel(
    logits,
    targets,
    loss,
    elements,
    positive_weight,
    negative_weight,
    gamma,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The focal loss of each element."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + p, mask=p < elements, other=0.0).to(tl.float32)
    y = tl.load(targets + p, mask=p < elements, other=0).to(tl.float32)
    sigmoid, other, log1p = sigmoid_both(x)
    entropy, _, scale = entropy_and_scale(x, y, sigmoid, other, log1p, gamma, SQUARE)
    weight = positive_weight * y + negative_weight * (1.0 - y)
    tl.store(loss + p, weight * scale * entropy, mask=p < elements)


@triton.jit
def elements_gradient_kernel(
    grad,
    logits,
    targets,
    grad_logits,
    elements,
    grad_step,
    positive_weight,
    negative_weight,
    gamma,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Its gradient; `grad_step` 0 where one gradient serves all, as after a sum."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + p, mask=p < elements, other=0.0).to(tl.float32)
    y = tl.load(targets + p, mask=p < elements, other=0).to(tl.float32)
    given = tl.load(grad + p * grad_step, mask=p < elements, other=0.0).to(tl.float32)
    sigmoid, other, log1p = sigmoid_both(x)
    slope = focal_slope(
        x, y, sigmoid, other, log1p, positive_weight, negative_weight, gamma, SQUARE
    )
    tl.store(grad_logits + p, given * slope, mask=p < elements)


def _as_stored(targets: Tensor) -> Tensor:
    """Contiguous targets in a dtype that kernels read: booleans as bytes."""
    targets = targets.contiguous()
    return targets.view(torch.uint8) if targets.dtype == torch.bool else targets


def focal_dice(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `mfkernels::focal_dice`; see csrc/torch_library.cpp for the arguments."""
    check_floats("focal_dice", logits)
    rows, elements = logits.shape
    focal = logits.new_empty(rows, dtype=torch.float32)
    dice = logits.new_empty(rows, dtype=torch.float32)
    sums = logits.new_empty((rows, 3), dtype=torch.float32)
    chunks = cdiv(elements, ELEMENTS_OF_A_PROGRAM)
    partial = logits.new_empty((rows, chunks, 4), dtype=torch.float32)
    launcher.launch(
        sums_kernel,
        (rows * chunks,),
        logits.contiguous(),
        _as_stored(targets),
        partial,
        elements,
        chunks,
        *focal_weights(alpha),
        float(gamma),
        SQUARE=gamma == 2,
        ELEMENTS=ELEMENTS_OF_A_PROGRAM,
        BLOCK=BLOCK,
        num_warps=8,
    )
    launcher.launch(
        totals_kernel,
        (rows,),
        partial,
        focal,
        dice,
        sums,
        chunks,
        float(elements),
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
    """The operator `mfkernels::focal_dice_backward`."""
    rows, elements = logits.shape
    grad_logits = logits.new_empty(logits.shape)
    tiles = cdiv(elements, BLOCK)
    launcher.launch(
        gradient_kernel,
        (rows * tiles,),
        grad_focal,
        grad_dice,
        sums,
        logits.contiguous(),
        _as_stored(targets),
        grad_logits,
        elements,
        tiles,
        grad_focal.stride(0),
        grad_dice.stride(0),
        *focal_weights(alpha),
        float(gamma),
        SQUARE=gamma == 2,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return grad_logits


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """The operator `mfkernels::sigmoid_focal_loss`."""
    check_floats("sigmoid_focal_loss", logits)
    loss = logits.new_empty(logits.shape)
    launcher.launch(
        elements_kernel,
        (cdiv(logits.numel(), BLOCK),),
        logits.contiguous(),
        _as_stored(targets),
        loss,
        logits.numel(),
        *focal_weights(alpha),
        float(gamma),
        SQUARE=gamma == 2,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return loss


def sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """The operator `mfkernels::sigmoid_focal_loss_backward`."""
    grad_logits = logits.new_empty(logits.shape)
    one_for_all = all(step == 0 for step in grad.stride())
    launcher.launch(
        elements_gradient_kernel,
        (cdiv(logits.numel(), BLOCK),),
        grad if one_for_all else grad.contiguous(),
        logits.contiguous(),
        _as_stored(targets),
        grad_logits,
        logits.numel(),
        0 if one_for_all else 1,
        *focal_weights(alpha),
        float(gamma),
        SQUARE=gamma == 2,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return grad_logits
