"""Sums over segments, quotients and the weighted total in one program, always in the same order."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Weights(NamedTuple):
    """Of the kinds of loss in the total."""

    of_class: float
    of_mask: float
    of_dice: float


@triton.jit
def sums_of_layer(values_ptr, layer, size, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    layer_ptr = values_ptr + tl.full([BLOCK], size, tl.int64) * layer
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(layer_ptr + index, mask=index < size, other=0.0)
    return tl.sum(total)


@triton.jit(do_not_specialize=["size"])
def loss_sums_kernel(
    focal_ptr,
    dice_ptr,
    class_loss_ptr,
    class_weight_ptr,
    num_masks_ptr,
    losses_ptr,
    factors_ptr,
    total_ptr,
    layers,
    size,
    num_masks,
    weights,
    BLOCK: tl.constexpr,
):
    """`losses [3, L]`, their weighted total, and `factors [2, 3, L]`.

    The latter are the derivatives of each loss, and of the total, with respect to a loss of a
    segment or to the sum over queries. `size`: of a layer's losses `[B, T]`.
    """
    if num_masks_ptr is not None:
        num_masks = tl.load(num_masks_ptr).to(tl.float32)
    part = tl.div_rn(1.0, num_masks)
    total = 0.0
    for layer in range(layers):
        class_part = tl.div_rn(1.0, tl.load(class_weight_ptr + layer))
        of_class = tl.load(class_loss_ptr + layer) * class_part
        of_mask = sums_of_layer(focal_ptr, layer, size, BLOCK) * part
        of_dice = sums_of_layer(dice_ptr, layer, size, BLOCK) * part
        tl.store(losses_ptr + layer, of_class)
        tl.store(losses_ptr + layers + layer, of_mask)
        tl.store(losses_ptr + 2 * layers + layer, of_dice)
        tl.store(factors_ptr + layer, class_part)
        tl.store(factors_ptr + layers + layer, part)
        tl.store(factors_ptr + 2 * layers + layer, part)
        of_total_ptr = factors_ptr + 3 * layers
        tl.store(of_total_ptr + layer, weights.of_class * class_part)
        tl.store(of_total_ptr + layers + layer, weights.of_mask * part)
        tl.store(of_total_ptr + 2 * layers + layer, weights.of_dice * part)
        total += weights.of_class * of_class + weights.of_mask * of_mask
        total += weights.of_dice * of_dice
    tl.store(total_ptr, total)
