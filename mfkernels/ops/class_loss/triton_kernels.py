"""Weighted cross-entropy of all queries, targets read from the assignment; and its gradient."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.math import segments_of_image
from mfkernels.triton.tensors import check_floats

QUERIES_OF_A_PROGRAM = 4


@triton.jit
def entropy_kernel(
    class_logits,
    labels,
    counts,
    assignment,
    partial,
    normalizer,
    target,
    queries,
    classes,
    max_count,
    no_object_weight,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """`partial [L, B, tiles, 2]`: weighted entropy and weight of some queries.

    Also `normalizer` (log Σ exp) and `target`, `[L, B, Q]`, for the gradient.
    """
    tile, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    number, first = segments_of_image(counts, image, BLOCK_B)
    line = layer.to(tl.int64) * tl.num_programs(1) + image
    q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    known = q < queries

    # The last segment that chose the query, and whether the image has an impossible label.
    chosen = tl.full([BLOCK_Q, BLOCK_T], -1, tl.int32)
    impossible = tl.zeros([BLOCK_T], tl.int32)
    for start in range(0, number, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        query = tl.load(assignment + line * max_count + t, mask=t < number, other=-1)
        chosen = tl.maximum(chosen, tl.where(query[None, :] == q[:, None], t[None, :], -1))
        label = tl.load(labels + first + t, mask=t < number, other=0)
        impossible |= ((label < 0) | (label >= classes - 1)).to(tl.int32)
    segment = tl.max(chosen, 1)
    label = tl.load(labels + first + segment, mask=segment >= 0, other=classes - 1)
    label = tl.minimum(tl.maximum(label.to(tl.int32), 0), classes - 1)

    row = class_logits + (line * queries + q) * classes
    largest = tl.full([BLOCK_Q, BLOCK_K], float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = known[:, None] & (k < classes)[None, :]
        x = tl.load(row[:, None] + k[None, :], mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, x.to(tl.float32))
    most = tl.where(known, tl.max(largest, 1), 0.0)
    total = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = known[:, None] & (k < classes)[None, :]
        x = tl.load(row[:, None] + k[None, :], mask=inside, other=float("-inf"))
        total += tl.exp(x.to(tl.float32) - most[:, None])
    log_total = tl.log(tl.where(known, tl.sum(total, 1), 1.0))
    wanted = tl.load(row + label, mask=known, other=0.0).to(tl.float32)
    entropy = log_total + (most - wanted)
    weight = tl.where(known, tl.where(label == classes - 1, no_object_weight, 1.0), 0.0)
    loss = tl.sum(weight * entropy)
    loss = tl.where(tl.max(impossible) > 0, float("nan"), loss)
    at = partial + (line * tl.num_programs(0) + tile) * 2
    tl.store(at, loss)
    tl.store(at + 1, tl.sum(weight))
    tl.store(normalizer + line * queries + q, most + log_total, mask=known)
    tl.store(target + line * queries + q, label, mask=known)


@triton.jit
def sum_kernel(partial, loss, weight, parts, BLOCK: tl.constexpr):
    """`loss` and `weight [L]` from `partial [L, parts, 2]`, always added in the same order."""
    layer = tl.program_id(0)
    sum_loss = tl.zeros([BLOCK], tl.float32)
    sum_weight = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        at = partial + (layer * parts + part) * 2
        sum_loss += tl.load(at, mask=part < parts, other=0.0)
        sum_weight += tl.load(at + 1, mask=part < parts, other=0.0)
    tl.store(loss + layer, tl.sum(sum_loss))
    tl.store(weight + layer, tl.sum(sum_weight))


@triton.jit
def gradient_kernel(
    grad_loss,
    class_logits,
    normalizer,
    target,
    grad_logits,
    rows_of_a_layer,
    classes,
    no_object_weight,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`grad_logits [L, B, Q, K+1]`: weight · (softmax − target) · the gradient of the layer."""
    layer = tl.program_id(1)
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    known = q < rows_of_a_layer
    row = layer.to(tl.int64) * rows_of_a_layer + q
    label = tl.load(target + row, mask=known, other=0)
    log_total = tl.load(normalizer + row, mask=known, other=0.0)
    scale = tl.load(grad_loss + layer)
    scale *= tl.where(label == classes - 1, no_object_weight, 1.0)
    at = row * classes
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = known[:, None] & (k < classes)[None, :]
        x = tl.load(class_logits + at[:, None] + k[None, :], mask=inside, other=0.0)
        slope = tl.exp(x.to(tl.float32) - log_total[:, None])
        slope -= tl.where(k[None, :] == label[:, None], 1.0, 0.0)
        tl.store(grad_logits + at[:, None] + k[None, :], scale[:, None] * slope, mask=inside)


def class_loss(
    class_logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    assignment: Tensor,
    no_object_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `mfkernels::class_loss`; see mfkernels/class_loss.py."""
    check_floats("class_loss", class_logits)
    layers, images, queries, classes = class_logits.shape
    tiles = cdiv(queries, QUERIES_OF_A_PROGRAM)
    loss = class_logits.new_empty(layers, dtype=torch.float32)
    weight = class_logits.new_empty(layers, dtype=torch.float32)
    partial = class_logits.new_empty((layers, images, tiles, 2), dtype=torch.float32)
    normalizer = class_logits.new_empty((layers, images, queries), dtype=torch.float32)
    target = class_logits.new_empty((layers, images, queries), dtype=torch.int32)
    launcher.launch(
        entropy_kernel,
        (tiles, images, layers),
        class_logits.contiguous(),
        labels,
        counts,
        assignment.contiguous(),
        partial,
        normalizer,
        target,
        queries,
        classes,
        assignment.shape[2],
        float(no_object_weight),
        BLOCK_Q=QUERIES_OF_A_PROGRAM,
        BLOCK_K=min(power_of_2(classes), 256),
        BLOCK_T=min(power_of_2(assignment.shape[2], 16), 64),
        BLOCK_B=min(power_of_2(images), 64),
        num_warps=4,
    )
    launcher.launch(
        sum_kernel,
        (layers,),
        partial,
        loss,
        weight,
        images * tiles,
        BLOCK=min(power_of_2(images * tiles), 1024),
        num_warps=4,
    )
    return loss, weight, normalizer, target


def class_loss_backward(
    grad_loss: Tensor,
    class_logits: Tensor,
    normalizer: Tensor,
    target: Tensor,
    no_object_weight: float,
) -> Tensor:
    """The operator `mfkernels::class_loss_backward`."""
    layers, images, queries, classes = class_logits.shape
    grad_logits = class_logits.new_empty(class_logits.shape)
    launcher.launch(
        gradient_kernel,
        (cdiv(images * queries, QUERIES_OF_A_PROGRAM), layers),
        grad_loss.contiguous(),
        class_logits.contiguous(),
        normalizer,
        target,
        grad_logits,
        images * queries,
        classes,
        float(no_object_weight),
        BLOCK_Q=QUERIES_OF_A_PROGRAM,
        BLOCK_K=min(power_of_2(classes), 256),
        num_warps=4,
    )
    return grad_logits
