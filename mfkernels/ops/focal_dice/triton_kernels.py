"""Focal and dice loss of given logits, and the focal loss of each element.

Each row is split into chunks, one program per chunk, so that even a few long rows occupy the whole
GPU. Each program stores partial sums, which a second kernel adds up in a fixed order, so that
results are deterministic. The backward pass needs three sums per row.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from mfkernels.triton.math import dice_loss, exp_of_negative, reciprocal, sigmoid_both, store_sums


@triton.jit
def entropy_and_factor(x, y, sigmoid, other, log1p, gamma, SQUARE: tl.constexpr):
    """Cross-entropy, m = 1 − p_t, and the modulating factor m^γ, of logits x and targets y.

    The targets may lie between 0 and 1. `sigmoid`, `other` and `log1p` are sigmoid(x), sigmoid(−x)
    and log(1 + exp(−|x|)). `SQUARE` says that γ is 2.
    """
    entropy = y * (tl.maximum(-x, 0.0) + log1p) + (1.0 - y) * (tl.maximum(x, 0.0) + log1p)
    entropy += 0.0 * x  # makes it NaN at every infinite logit; docs/not_finite.md
    m = (1.0 - y) * sigmoid + y * other
    if SQUARE:
        return entropy, m, m * m
    # At least the smallest normal number, so that 0^0 is 1 and the logarithm is finite.
    m = tl.maximum(m, 1.1754944e-38)
    return entropy, m, exp_of_negative(gamma * tl.log(m))


@triton.jit
def focal_gradient(x, y, sigmoid, other, log1p, focal, SQUARE: tl.constexpr):
    """∂focal/∂x = α_t · (m^γ (s − y) + γ m^(γ−1) (1 − 2y) s (1 − s) · entropy), s = sigmoid(x)."""
    entropy, m, factor = entropy_and_factor(x, y, sigmoid, other, log1p, focal.gamma, SQUARE)
    weight = focal.positive_weight * y + focal.negative_weight * (1.0 - y)
    grad_entropy = (1.0 - y) * sigmoid - y * other  # s − y without cancellation
    grad_m = (1.0 - 2.0 * y) * sigmoid * other
    if SQUARE:
        return weight * m * (m * grad_entropy + 2.0 * grad_m * entropy)
    # The term of the modulating factor, divided by the factor.
    grad_factor = focal.gamma * entropy * (grad_m * reciprocal(m))
    grad_factor = tl.where(focal.gamma > 0.0, grad_factor, 0.0)  # 0 · entropy may be NaN
    return weight * factor * (grad_entropy + grad_factor)


@triton.jit
def focal_dice_sums_kernel(
    logits_ptr,
    targets_ptr,
    partial_ptr,
    elements,
    chunks,
    focal,
    SQUARE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`partial [M, chunks, 4]`: Σ focal, Σ s y, Σ s, Σ y of a chunk of a row."""
    row, begin = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    begin = begin.to(tl.int64) * ELEMENTS
    logits_ptr += row * elements + begin
    targets_ptr += row * elements + begin
    remaining = tl.minimum(elements - begin, ELEMENTS).to(tl.int32)
    sum_focal = tl.zeros([BLOCK], tl.float32)
    sum_both = tl.zeros([BLOCK], tl.float32)
    sum_sigmoid = tl.zeros([BLOCK], tl.float32)
    sum_target = tl.zeros([BLOCK], tl.float32)
    for start in range(0, remaining, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < remaining
        x = tl.load(logits_ptr + p, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(targets_ptr + p, mask=inside, other=0).to(tl.float32)
        sigmoid, other, log1p = sigmoid_both(x)
        entropy, _, factor = entropy_and_factor(x, y, sigmoid, other, log1p, focal.gamma, SQUARE)
        weight = focal.positive_weight * y + focal.negative_weight * (1.0 - y)
        sum_focal += tl.where(inside, weight * factor * entropy, 0.0)
        sum_both += sigmoid * y
        sum_sigmoid += tl.where(inside, sigmoid, 0.0)
        sum_target += y
    sums_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * 4
    tl.store(sums_ptr, tl.sum(sum_focal))
    tl.store(sums_ptr + 1, tl.sum(sum_both))
    tl.store(sums_ptr + 2, tl.sum(sum_sigmoid))
    tl.store(sums_ptr + 3, tl.sum(sum_target))


@triton.jit
def focal_dice_totals_kernel(
    partial_ptr, focal_ptr, dice_ptr, sums_ptr, chunks, elements, BLOCK: tl.constexpr
):
    """`focal` and `dice [M]`, `sums [M, 3]` from the partial sums, one program per row."""
    row = tl.program_id(0).to(tl.int64)
    sum_focal = tl.zeros([BLOCK], tl.float32)
    sum_both = tl.zeros([BLOCK], tl.float32)
    sum_sigmoid = tl.zeros([BLOCK], tl.float32)
    sum_target = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        chunk_ptr = partial_ptr + (row * chunks + chunk) * 4
        sum_focal += tl.load(chunk_ptr, mask=chunk < chunks, other=0.0)
        sum_both += tl.load(chunk_ptr + 1, mask=chunk < chunks, other=0.0)
        sum_sigmoid += tl.load(chunk_ptr + 2, mask=chunk < chunks, other=0.0)
        sum_target += tl.load(chunk_ptr + 3, mask=chunk < chunks, other=0.0)
    both, sigmoid, target = tl.sum(sum_both), tl.sum(sum_sigmoid), tl.sum(sum_target)
    tl.store(focal_ptr + row, tl.sum(sum_focal) / elements)
    tl.store(dice_ptr + row, dice_loss(both, sigmoid, target))
    store_sums(sums_ptr, row, both, sigmoid, target)


@triton.jit
def focal_dice_gradient_kernel(
    grad,
    sums_ptr,
    logits_ptr,
    targets_ptr,
    grad_logits_ptr,
    elements,
    tiles,
    grad_focal_stride,
    grad_dice_stride,
    focal,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`grad_logits [M, P]`, one program per tile of a row."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    grad_focal = tl.load(grad.focal_ptr + row * grad_focal_stride) / elements
    grad_dice = tl.load(grad.dice_ptr + row * grad_dice_stride)
    both, union = tl.load(sums_ptr + row * 3), tl.load(sums_ptr + row * 3 + 1) + 1.0
    union += tl.load(sums_ptr + row * 3 + 2)
    grad_of_all = grad_dice * (2.0 * both + 1.0) / (union * union)
    grad_of_target = -2.0 * grad_dice / union
    begin = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK
    start = row * elements + begin
    p = tl.arange(0, BLOCK)
    inside = p < elements - begin
    x = tl.load(logits_ptr + start + p, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(targets_ptr + start + p, mask=inside, other=0).to(tl.float32)
    sigmoid, other, log1p = sigmoid_both(x)
    of_focal = grad_focal * focal_gradient(x, y, sigmoid, other, log1p, focal, SQUARE)
    of_dice = sigmoid * other * (grad_of_all + grad_of_target * y)
    # Skip a loss whose incoming gradient is 0: its own gradient may be NaN, and 0 · NaN is NaN.
    grad_logit = tl.where(grad_focal == 0.0, 0.0, of_focal)
    grad_logit += tl.where(grad_dice == 0.0, 0.0, of_dice)
    tl.store(grad_logits_ptr + start + p, grad_logit, mask=inside)


@triton.jit
def elements_kernel(
    logits_ptr, targets_ptr, loss_ptr, elements, focal, SQUARE: tl.constexpr, BLOCK: tl.constexpr
):
    """The focal loss of each element."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + p, mask=p < elements, other=0.0).to(tl.float32)
    y = tl.load(targets_ptr + p, mask=p < elements, other=0).to(tl.float32)
    sigmoid, other, log1p = sigmoid_both(x)
    entropy, _, factor = entropy_and_factor(x, y, sigmoid, other, log1p, focal.gamma, SQUARE)
    weight = focal.positive_weight * y + focal.negative_weight * (1.0 - y)
    tl.store(loss_ptr + p, weight * factor * entropy, mask=p < elements)


@triton.jit
def elements_gradient_kernel(
    grad_ptr,
    logits_ptr,
    targets_ptr,
    grad_logits_ptr,
    elements,
    grad_stride,
    focal,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of `elements_kernel`.

    `grad_stride` is 0 if the incoming gradient is expanded from one element, as after a sum.
    """
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + p, mask=p < elements, other=0.0).to(tl.float32)
    y = tl.load(targets_ptr + p, mask=p < elements, other=0).to(tl.float32)
    grad = tl.load(grad_ptr + p * grad_stride, mask=p < elements, other=0.0).to(tl.float32)
    sigmoid, other, log1p = sigmoid_both(x)
    grad_logit = focal_gradient(x, y, sigmoid, other, log1p, focal, SQUARE)
    tl.store(grad_logits_ptr + p, grad * grad_logit, mask=p < elements)
