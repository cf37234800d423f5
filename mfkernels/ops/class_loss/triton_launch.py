"""Launches of the Triton kernels of the class loss."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels.ops.class_loss.triton_kernels import (
    Block,
    entropy_kernel,
    gradient_kernel,
    sum_kernel,
)
from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.math import images_at_once
from mfkernels.triton.tensors import check_floats

BLOCK_Q = 4
BLOCK_T = 16


def class_loss(
    class_logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    assignment: Tensor,
    no_object_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `mfkernels::class_loss`.

    Takes `class_logits [L, B, Q, K+1]`, and `labels [N]`, `counts [B]` and `assignment [L, B, T]`,
    all int64. Returns `loss` and `weight [L]`, the sums over queries and images of weighted losses
    and of weights, and for the backward pass `normalizer [L, B, Q]` float32 and `target [L, B, Q]`
    int32.
    """
    check_floats("class_loss", class_logits)
    layers, images, queries, classes = class_logits.shape
    tiles = cdiv(queries, BLOCK_Q)
    loss = class_logits.new_empty(layers, dtype=torch.float32)
    weight = class_logits.new_empty(layers, dtype=torch.float32)
    partial = class_logits.new_empty((layers, images, tiles, 2), dtype=torch.float32)
    normalizer = class_logits.new_empty((layers, images, queries), dtype=torch.float32)
    target = class_logits.new_empty((layers, images, queries), dtype=torch.int32)
    launcher.launch(
        entropy_kernel,
        (tiles, images, layers),
        class_logits_ptr=class_logits.contiguous(),
        labels_ptr=labels.contiguous(),
        counts_ptr=counts.contiguous(),
        assignment_ptr=assignment.contiguous(),
        partial_ptr=partial,
        normalizer_ptr=normalizer,
        target_ptr=target,
        queries=queries,
        classes=classes,
        max_count=assignment.shape[2],
        num_segments=len(labels),
        no_object_weight=float(no_object_weight),
        BLOCK=Block(
            queries=BLOCK_Q,
            classes=min(power_of_2(classes), 256),
            segments=BLOCK_T,
            images=images_at_once(images),
        ),
        num_warps=4,
    )
    launcher.launch(
        sum_kernel,
        (layers,),
        partial_ptr=partial,
        loss_ptr=loss,
        weight_ptr=weight,
        parts=images * tiles,
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
    """The operator `mfkernels::class_loss_backward`.

    `grad_loss [L]`; the others as in `class_loss`. Returns `grad_logits [L, B, Q, K+1]`.
    """
    layers, images, queries, classes = class_logits.shape
    grad_logits = class_logits.new_empty(class_logits.shape)
    launcher.launch(
        gradient_kernel,
        (cdiv(images * queries, BLOCK_Q), layers),
        grad_loss_ptr=grad_loss.contiguous(),
        class_logits_ptr=class_logits.contiguous(),
        normalizer_ptr=normalizer,
        target_ptr=target,
        grad_logits_ptr=grad_logits,
        rows_of_a_layer=images * queries,
        classes=classes,
        no_object_weight=float(no_object_weight),
        BLOCK_Q=BLOCK_Q,
        BLOCK_K=min(power_of_2(classes), 256),
        num_warps=4,
    )
    return grad_logits
