"""Matching for models that hold dense mask logits `[B, Q, h, w]` and lists of masks and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfkernels.ops.assignment import batch_linear_assignment
from mfkernels.ops.matching_cost import matching_cost
from mfkernels.targets import SegmentTargets

Pair = tuple[Tensor, Tensor]
"""Matched queries in ascending order and the segment of each, both `[min(Q, T_b)]` int64."""


def binary_targets(masks: Sequence[Tensor], labels: Sequence[Tensor]) -> SegmentTargets | None:
    """The segments of a batch, or None if a mask holds anything but 0 and 1.

    On a GPU this reads one flag back.
    """
    binary = [mask if mask.dtype == torch.bool else mask != 0 for mask in masks]
    pairs = zip(masks, binary, strict=True)
    same = [(mask == bits).all() for mask, bits in pairs if mask.dtype != torch.bool]
    if same and not bool(torch.stack(same).all()):
        return None
    return SegmentTargets.from_masks(binary, labels)


def dense_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: SegmentTargets,
    sizes: Sequence[tuple[int, int]],
    **weights: float,
) -> Tensor:
    """`[B, Q, T]`: MaskFormer's cost, every image's masks subsampled from its own size.

    Args:
        class_logits: `[B, Q, K+1]`.
        mask_logits: `[B, Q, h, w]`.
        targets: the segments, padded to one size.
        sizes: `(H_b, W_b)` before the padding.
        weights: `class_weight`, `mask_weight` and `dice_weight`.
    """
    if all(size == targets.size for size in sizes):
        return matching_cost(class_logits, mask_logits, None, targets, **weights)
    costs = []
    for image, (height, width) in enumerate(sizes):
        mask = targets.dense_masks(image)[:, :height, :width]
        start = targets.offsets[image]
        label = targets.labels[start : start + targets.counts[image]]
        part = slice(image, image + 1)
        alone = SegmentTargets.from_masks([mask], [label])
        cost = matching_cost(class_logits[part], mask_logits[part], None, alone, **weights)
        costs.append(F.pad(cost, (0, targets.max_count - cost.shape[-1])))
    return torch.cat(costs)


def assign(cost: Tensor, counts: Sequence[int]) -> Tensor:
    """`[..., B, T]` int64: the query of each segment, or −1, for costs `[..., B, Q, T]`.

    All problems are solved in one call on the device. Ties go as in SciPy. NaN and infinite costs
    are used only where no other matching is left.
    """
    columns = torch.stack([torch.full((), n, device=cost.device) for n in counts])
    assignment = batch_linear_assignment(cost, col_counts=columns, strict=True)
    # Segment of each query -> query of each segment; queries without one write to a spare column.
    segments = cost.shape[-1]
    inverse = assignment.new_full((*assignment.shape[:-1], segments + 1), -1)
    query = torch.arange(cost.shape[-2], device=cost.device).expand_as(assignment)
    inverse.scatter_(-1, assignment.where(assignment >= 0, segments), query)
    return inverse[..., :segments]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def pairs(assignment: Tensor, counts: Sequence[int], queries: int) -> list[Pair]:
    """The official form of `assignment [B, T]`, on its device and without waiting for it."""
    ordered, segment = assignment.where(assignment >= 0, queries).sort(-1)
    return [
        (ordered[image, : min(count, queries)], segment[image, : min(count, queries)])
        for image, count in enumerate(counts)
    ]


def from_pairs(indices: Sequence[Pair], max_count: int, device: torch.device) -> Tensor:
    """`[B, T]` int64: the inverse of `pairs`. Indices on a GPU are waited for.

    Raises:
        ValueError: a query or a segment is in more than one pair of an image.
    """
    assignment = torch.full((len(indices), max_count), -1, device=device)
    for image, (row, (query, segment)) in enumerate(zip(assignment, indices, strict=True)):
        for name, index in (("query", query), ("segment", segment)):
            if len(index.unique()) < len(index):
                raise ValueError(
                    f"the matcher must match one-to-one; for image {image} it gave a {name} more "
                    f"than once: {index.tolist()}"
                )
        row[segment.to(device)] = query.to(device)
    return assignment
