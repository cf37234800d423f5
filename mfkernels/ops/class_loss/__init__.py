"""Weighted cross-entropy of all queries: one operator on a GPU, a dozen small ones elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import native_problem
from mfkernels.ops.class_loss import reference
from mfkernels.ops.common import operator_checks
from mfkernels.targets import SegmentTargets


def class_loss(
    class_logits: Tensor, targets: SegmentTargets, assignment: Tensor, no_object_weight: float
) -> tuple[Tensor, Tensor]:
    """Sum over queries and images of weight · entropy, and of the weights alone.

    Args:
        class_logits: `[L, B, Q, K+1]`; index K is "no object".
        targets: the segments of the B images.
        assignment: `[L, B, T]` int64: the query of each segment, or −1 for none.
        no_object_weight: weight of a query without a segment; all others weigh 1.

    Returns:
        Both `[L]`, float32 (float64 for float64 inputs); the first is differentiable once. It is
        NaN if a label is outside `[0, K)`.
    """
    if _on_a_gpu(class_logits) and (
        backend.select("class_loss", class_logits.device, native_problem(class_logits)) == "native"
    ):
        loss, weight, _, _ = torch.ops.mfkernels.class_loss(
            class_logits, targets.labels, targets.counts_tensor(), assignment, no_object_weight
        )
        return loss, weight
    return reference.class_loss(class_logits, targets, assignment, no_object_weight)


def _on_a_gpu(tensor: Tensor) -> bool:
    # On a CPU there are no launches to save, so that a kernel would have nothing to gain.
    return tensor.is_cuda


def _fake(
    class_logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    assignment: Tensor,
    no_object_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operator_checks.class_loss(class_logits, labels, counts, assignment, no_object_weight)
    shape = class_logits.shape
    loss, weight = (class_logits.new_empty(shape[:1], dtype=torch.float32) for _ in range(2))
    return (
        loss,
        weight,
        class_logits.new_empty(shape[:3], dtype=torch.float32),
        class_logits.new_empty(shape[:3], dtype=torch.int32),
    )


def _fake_backward(
    grad_loss: Tensor,
    class_logits: Tensor,
    normalizer: Tensor,
    target: Tensor,
    no_object_weight: float,
) -> Tensor:
    operator_checks.class_loss_backward(
        grad_loss, class_logits, normalizer, target, no_object_weight
    )
    return class_logits.new_empty(class_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    class_logits, *_, ctx.no_object_weight = inputs
    _, weight, normalizer, target = output
    ctx.mark_non_differentiable(weight, normalizer, target)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(class_logits, normalizer, target)


def _backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("class_loss can be differentiated only once (create_graph=True)")
    gradient = torch.ops.mfkernels.class_loss_backward(
        grad_loss, *ctx.saved_tensors, ctx.no_object_weight
    )
    return gradient, None, None, None, None


if hasattr(torch.ops.mfkernels, "class_loss"):
    torch.library.register_fake("mfkernels::class_loss", _fake)
    torch.library.register_fake("mfkernels::class_loss_backward", _fake_backward)
    torch.library.register_autograd(
        "mfkernels::class_loss", _backward, setup_context=_setup_context
    )
