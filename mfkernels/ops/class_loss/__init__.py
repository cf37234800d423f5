"""Weighted cross-entropy of all queries: a fused kernel on a GPU, a dozen operators elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.class_loss.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import native_problem
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.class_loss import reference
from mfkernels.targets import SegmentTargets


@served_by_pytorch_where_kernels_fail("class_loss")
def class_loss(
    class_logits: Tensor,
    targets: SegmentTargets,
    assignment: Tensor,
    no_object_weight: float | Tensor,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the weighted cross-entropies, and the weights, over queries and images.

    The arguments are not checked; the criteria have done so.

    Args:
        class_logits: `[L, B, Q, K+1]`; index K is "no object".
        targets: the segments of the B images.
        assignment: `[L, B, T]` int64, the query of each segment, or −1 for none.
        no_object_weight: weight of a query without a segment; a 0-dim tensor only together with
            `class_weights`.
        class_weights: `[K]`, weight of a query by the class of its segment. None: all are 1.
            No kernel supports class weights, so plain PyTorch computes the loss with them.

    Returns:
        Both `[L]`, float32 (float64 for float64 inputs). The first is differentiable, and NaN if a
        label is outside `[0, K)`.
    """
    problem = native_problem(class_logits)
    plain = class_weights is not None
    if plain or backend.select("class_loss", class_logits.device, problem) != "native":
        return reference.class_loss(
            class_logits, targets, assignment, no_object_weight, class_weights
        )
    loss, weight, _, _ = torch.ops.mfkernels.class_loss(
        class_logits, targets.labels, targets.counts_tensor(), assignment, no_object_weight
    )
    return loss, weight
