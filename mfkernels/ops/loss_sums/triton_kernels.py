"""Sums over segments, normalised losses and their weighted total.

A single program computes them all, in a fixed order, so that results are deterministic.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.triton.math import load_tile


class Weights(NamedTuple):
    """The weights of the three kinds of loss in the total."""

    of_class: float
    of_mask: float
    of_dice: float


@triton.jit
def sum_per_layer(values_ptr, layer, layers, size, BLOCK: tl.constexpr):
    """The sum of each row of `values [L, size]`, where `layer` holds the indices of the rows."""
    total = tl.zeros([layer.shape[0], BLOCK], tl.float32)
    layer_ptr = values_ptr + layer.to(tl.int64) * size
    for start in range(0, size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += load_tile(layer_ptr, index, 1, layer < layers, index < size)
    return tl.sum(total, 1)


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
    LAYERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`losses [3, L]`, their weighted total, and `factors [2, 3, L]` for the backward pass.

    `factors[0]` holds the derivatives of each loss, and `factors[1]` those of the total, with
    respect to the inputs: the class loss summed over queries, and the focal and the dice loss of a
    segment. `size` is B · T, the number of segment losses per layer.
    """
    if num_masks_ptr is not None:
        num_masks = tl.load(num_masks_ptr).to(tl.float32)
    part = tl.div_rn(1.0, num_masks)
    layer = tl.arange(0, LAYERS)
    is_layer = layer < layers
    class_part = tl.div_rn(1.0, tl.load(class_weight_ptr + layer, mask=is_layer, other=1.0))
    of_class = tl.load(class_loss_ptr + layer, mask=is_layer, other=0.0) * class_part
    of_mask = sum_per_layer(focal_ptr, layer, layers, size, BLOCK) * part
    of_dice = sum_per_layer(dice_ptr, layer, layers, size, BLOCK) * part
    tl.store(losses_ptr + layer, of_class, mask=is_layer)
    tl.store(losses_ptr + layers + layer, of_mask, mask=is_layer)
    tl.store(losses_ptr + 2 * layers + layer, of_dice, mask=is_layer)
    tl.store(factors_ptr + layer, class_part, mask=is_layer)
    tl.store(factors_ptr + layers + layer, part, mask=is_layer)
    tl.store(factors_ptr + 2 * layers + layer, part, mask=is_layer)
    of_total_ptr = factors_ptr + 3 * layers
    tl.store(of_total_ptr + layer, weights.of_class * class_part, mask=is_layer)
    tl.store(of_total_ptr + layers + layer, weights.of_mask * part, mask=is_layer)
    tl.store(of_total_ptr + 2 * layers + layer, weights.of_dice * part, mask=is_layer)
    weighted = weights.of_class * of_class + weights.of_mask * of_mask
    tl.store(total_ptr, tl.sum(weighted + weights.of_dice * of_dice))
