"""Weighted cross-entropy of all queries and its gradient.

The kernel finds the target class of each query by searching the assignment for it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.triton.math import segments_of_image


class Block(NamedTuple):
    """Block sizes of the entropy kernel: how many of each it processes at a time."""

    queries: int
    classes: int
    segments: int
    images: int


@triton.jit(do_not_specialize=["max_count", "num_segments"])
def entropy_kernel(
    class_logits_ptr,
    labels_ptr,
    counts_ptr,
    assignment_ptr,
    partial_ptr,
    normalizer_ptr,
    target_ptr,
    queries,
    classes,
    max_count,
    num_segments,
    no_object_weight,
    BLOCK: tl.constexpr,
):
    """`partial [L, B, tiles, 2]`: Σ weight · cross-entropy and Σ weight over a tile of queries.

    Also, for the backward pass, `normalizer` (log Σ exp of the logits) and `target` (the class),
    both `[L, B, Q]`. One program per tile of queries, image and layer.
    """
    BLOCK_T: tl.constexpr = BLOCK.segments
    BLOCK_Q: tl.constexpr = BLOCK.queries
    BLOCK_K: tl.constexpr = BLOCK.classes
    tile, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count, first = segments_of_image(counts_ptr, image, max_count, num_segments, BLOCK.images)
    layer_image = layer.to(tl.int64) * tl.num_programs(1) + image
    q = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = q < queries

    # The last segment that is assigned to each query (-1: none), and whether the image has a label
    # that is out of range.
    chosen = tl.full([BLOCK_Q, BLOCK_T], -1, tl.int32)
    is_invalid = tl.zeros([BLOCK_T], tl.int32)
    for start in range(0, count, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        query = tl.load(assignment_ptr + layer_image * max_count + t, mask=t < count, other=-1)
        chosen = tl.maximum(chosen, tl.where(query[None, :] == q[:, None], t[None, :], -1))
        label = tl.load(labels_ptr + first + t, mask=t < count, other=0)
        is_invalid |= ((label < 0) | (label >= classes - 1)).to(tl.int32)
    segment = tl.max(chosen, 1)
    label = tl.load(labels_ptr + first + segment, mask=segment >= 0, other=classes - 1)
    label = tl.minimum(tl.maximum(label.to(tl.int32), 0), classes - 1)

    row_ptr = class_logits_ptr + (layer_image * queries + q) * classes
    largest = tl.full([BLOCK_Q, BLOCK_K], float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = is_query[:, None] & (k < classes)[None, :]
        x = tl.load(row_ptr[:, None] + k[None, :], mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, x.to(tl.float32))
    row_max = tl.where(is_query, tl.max(largest, 1), 0.0)
    total = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = is_query[:, None] & (k < classes)[None, :]
        x = tl.load(row_ptr[:, None] + k[None, :], mask=inside, other=float("-inf"))
        total += tl.exp(x.to(tl.float32) - row_max[:, None])
    log_total = tl.log(tl.where(is_query, tl.sum(total, 1), 1.0))
    target_logit = tl.load(row_ptr + label, mask=is_query, other=0.0).to(tl.float32)
    entropy = log_total + (row_max - target_logit)
    weight = tl.where(is_query, tl.where(label == classes - 1, no_object_weight, 1.0), 0.0)
    loss = tl.sum(weight * entropy)
    loss = tl.where(tl.max(is_invalid) > 0, float("nan"), loss)
    tile_ptr = partial_ptr + (layer_image * tl.num_programs(0) + tile) * 2
    tl.store(tile_ptr, loss)
    tl.store(tile_ptr + 1, tl.sum(weight))
    normalizer = row_max + log_total
    tl.store(normalizer_ptr + layer_image * queries + q, normalizer, mask=is_query)
    tl.store(target_ptr + layer_image * queries + q, label, mask=is_query)


@triton.jit
def sum_kernel(partial_ptr, loss_ptr, weight_ptr, parts, BLOCK: tl.constexpr):
    """`loss` and `weight [L]` from `partial [L, parts, 2]`, added up in a fixed order."""
    layer = tl.program_id(0)
    sum_loss = tl.zeros([BLOCK], tl.float32)
    sum_weight = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        part_ptr = partial_ptr + (layer * parts + part) * 2
        sum_loss += tl.load(part_ptr, mask=part < parts, other=0.0)
        sum_weight += tl.load(part_ptr + 1, mask=part < parts, other=0.0)
    tl.store(loss_ptr + layer, tl.sum(sum_loss))
    tl.store(weight_ptr + layer, tl.sum(sum_weight))


@triton.jit
def gradient_kernel(
    grad_loss_ptr,
    class_logits_ptr,
    normalizer_ptr,
    target_ptr,
    grad_logits_ptr,
    rows_of_a_layer,
    classes,
    no_object_weight,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`grad_logits [L, B, Q, K+1]` = grad_loss · weight · (softmax − one-hot target)."""
    layer = tl.program_id(1)
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = q < rows_of_a_layer
    row = layer.to(tl.int64) * rows_of_a_layer + q
    label = tl.load(target_ptr + row, mask=is_query, other=0)
    normalizer = tl.load(normalizer_ptr + row, mask=is_query, other=0.0)
    scale = tl.load(grad_loss_ptr + layer)
    scale *= tl.where(label == classes - 1, no_object_weight, 1.0)
    offset = row * classes
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = is_query[:, None] & (k < classes)[None, :]
        x = tl.load(class_logits_ptr + offset[:, None] + k[None, :], mask=inside, other=0.0)
        grad = tl.exp(x.to(tl.float32) - normalizer[:, None])
        grad -= tl.where(k[None, :] == label[:, None], 1.0, 0.0)
        tl.store(grad_logits_ptr + offset[:, None] + k[None, :], scale[:, None] * grad, mask=inside)
