"""Matching for models that hold dense mask logits `[B, Q, h, w]` and lists of masks and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.checks import check_floating, check_tensor, result_dtype, without_autocast
from mfkernels.ops.assignment import batch_linear_assignment
from mfkernels.ops.matching_cost import matching_cost, reference
from mfkernels.targets import SegmentTargets, holds_values, is_integer

Pair = tuple[Tensor, Tensor]
"""Matched queries in ascending order and the segment of each, both `[min(Q, T_b)]` int64."""


def binary_targets(masks: Sequence[Tensor], labels: Sequence[Tensor]) -> SegmentTargets | None:
    """The segments of a batch, or None if a mask holds values other than 0 and 1.

    Unless all masks are bool, this synchronises with a GPU to read one flag, and breaks a graph of
    `torch.compile`.
    """
    for image, mask in enumerate(masks):
        check_tensor(f"masks[{image}]", mask)
    binary = [mask if mask.dtype == torch.bool else mask != 0 for mask in masks]
    pairs = zip(masks, binary, strict=True)
    same = [
        (mask == bits).all()
        for mask, bits in pairs
        if mask.dtype != torch.bool and not mask.is_meta
    ]
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
    """Compute MaskFormer's cost `[B, Q, T]`; each image's masks are subsampled from their own size.

    Args:
        class_logits: `[B, Q, K+1]`.
        mask_logits: `[B, Q, h, w]`.
        targets: the segments, padded to one size. Labels may also be K, "no object".
        sizes: `(H_b, W_b)` of each image before the padding.
        weights: `class_weight`, `mask_weight` and `dice_weight`.

    Raises:
        ValueError: a shape or a label is wrong.
    """
    check_mask_logits(mask_logits)
    targets.check_labels(class_logits.shape[-1] - 1, no_object=True)
    # Labels may be K here: append a class with probability 0 to take the place of "no object".
    classes = F.pad(class_logits, (0, 1), value=-math.inf)
    if all(size == targets.size for size in sizes):
        return matching_cost(classes, mask_logits, None, targets, **weights)
    costs = []
    for image, (height, width) in enumerate(sizes):
        mask = targets.dense_masks(image)[:, :height, :width]
        start = targets.offsets[image]
        label = targets.labels[start : start + targets.counts[image]]
        part = slice(image, image + 1)
        alone = SegmentTargets.from_masks([mask], [label])
        cost = matching_cost(classes[part], mask_logits[part], None, alone, **weights)
        costs.append(F.pad(cost, (0, targets.max_count - cost.shape[-1])))
    return torch.cat(costs)


def dense_cost_of_any_masks(
    class_logits: Tensor,
    mask_logits: Tensor,
    masks: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> Tensor:
    """Compute `dense_cost` in plain PyTorch, for masks `[T_b, H_b, W_b]` with any values."""
    check_matched(class_logits, mask_logits, masks, labels)
    longest = max([0, *map(len, labels)])
    with without_autocast(mask_logits.device):
        probability = class_logits.to(result_dtype(class_logits, mask_logits)).softmax(-1)
        costs = []
        for image, (mask, label) in enumerate(zip(masks, labels, strict=True)):
            logits = mask_logits[image].to(probability.dtype).flatten(1)
            mask = mask.to(logits)[:, None]
            low = F.interpolate(mask, mask_logits.shape[-2:], mode="nearest")[:, 0].flatten(1)
            cost = mask_weight * reference.focal_cost(logits, low, alpha=0.25, gamma=2.0)
            cost += dice_weight * reference.dice_cost(logits, low)
            index = class_index(label, probability).to(logits.device)
            cost -= class_weight * probability[image][:, index]
            costs.append(F.pad(cost, (0, longest - len(label))))
        return torch.stack(costs)


def class_index(label: Tensor, probability: Tensor) -> Tensor:
    """Convert labels to int64 indices of `probability [..., K+1]`; K, "no object", is allowed.

    Raises:
        TypeError, ValueError: a label is not an integer, or is not in 0..K.
    """
    classes = probability.shape[-1]
    if label.numel():
        if label.dtype.is_floating_point or label.dtype == torch.bool:
            raise TypeError(f"labels must be integers, got {label.dtype}")
        if holds_values(label) and not -classes <= int(label.min()) <= int(label.max()) < classes:
            raise ValueError(
                f'labels must be in 0..{classes - 2} (or {classes - 1}, "no object"), got '
                f"{label.tolist()}"
            )
    return label.long()


def check_mask_logits(mask_logits: Tensor, **per_image: Sequence[Any]) -> None:
    """Raise ValueError unless logits are `[B, Q, h, w]` and the other arguments have length B."""
    check_floating("mask logits", mask_logits)
    if mask_logits.ndim != 4:
        raise ValueError(
            f"mask logits must be [B, Q, h, w], got {list(mask_logits.shape)}; stack the "
            "frames of a video vertically, in logits and masks"
        )
    for name, given in per_image.items():
        if len(given) != len(mask_logits):
            raise ValueError(
                f"{name} must be for {len(mask_logits)} images like the mask logits, got "
                f"{len(given)} images"
            )


def check_matched(
    class_logits: Tensor, mask_logits: Tensor, masks: Sequence[Tensor], labels: Sequence[Tensor]
) -> None:
    """Raise TypeError or ValueError unless predictions and targets of a matcher fit together."""
    check_mask_logits(mask_logits, masks=masks, labels=labels)
    if class_logits.ndim != 3 or class_logits.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            f"class logits must be {[*mask_logits.shape[:2], 'K+1']} like the mask logits, got "
            f"{list(class_logits.shape)}"
        )
    for image, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        check_tensor(f"masks[{image}]", mask)
        check_tensor(f"labels[{image}]", label)
        if mask.ndim != 3 or len(mask) != len(label):
            raise ValueError(
                f"masks[{image}] must be [{len(label)}, H, W] like the labels, got "
                f"{list(mask.shape)}"
            )


def assign(cost: Tensor, counts: Sequence[int]) -> Tensor:
    """Find the query of each segment, `[..., B, T]` int64 or −1, for costs `[..., B, Q, T]`.

    All problems are solved in one call on the device. Ties are broken as in SciPy. NaN and infinite
    costs are used only if no other matching is left.
    """
    columns = torch.stack([torch.full((), n, device=cost.device) for n in counts])
    assignment = batch_linear_assignment(cost, col_counts=columns, strict=True)
    # Invert the assignment from segment of each query to query of each segment. Queries without a
    # segment scatter to an extra column, which is sliced off again.
    segments = cost.shape[-1]
    inverse = assignment.new_full((*assignment.shape[:-1], segments + 1), -1)
    query = torch.arange(cost.shape[-2], device=cost.device).expand_as(assignment)
    inverse.scatter_(-1, assignment.where(assignment >= 0, segments), query)
    return inverse[..., :segments]


def assign_layers(costs: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Call `assign` for the costs `[B, Q, T]` of layers, once if all have the same Q."""
    if len({cost.shape for cost in costs}) == 1:
        return list(assign(torch.stack([*costs]), counts))
    return [assign(cost, counts) for cost in costs]


def called(module: Any, attribute: str) -> Callable[..., Any] | None:
    """Return the function that `module.<attribute>` runs; None if other code replaced it."""
    own = vars(module).get(attribute)
    if own is None:
        function: Callable[..., Any] = getattr(type(module), attribute)
        return function
    return own.__func__ if is_bound_to(own, module) else None


def is_bound_to(method: Any, module: Any) -> bool:
    return isinstance(method, MethodType) and method.__self__ is module


def pairs(assignment: Tensor, counts: Sequence[int], queries: int) -> list[Pair]:
    """Convert `assignment [B, T]` to pairs, the official form, without synchronising."""
    ordered, segment = assignment.where(assignment >= 0, queries).sort(-1)
    return [
        (ordered[image, : min(count, queries)], segment[image, : min(count, queries)])
        for image, count in enumerate(counts)
    ]


def as_pairs(indices: Sequence[tuple[Any, Any]]) -> list[Pair]:
    """Convert the result of a matcher (tensors, NumPy arrays or lists of integers) to pairs.

    Raises:
        TypeError: an index has another dtype.
    """
    return [(_as_index(query), _as_index(segment)) for query, segment in indices]


def _as_index(index: Any) -> Tensor:
    # Tensors stay on their device; other indices are put on the CPU, whatever the default device.
    if isinstance(index, np.ndarray):  # may have any strides and byte order
        index = np.ascontiguousarray(index, index.dtype.newbyteorder("="))
    tensor = index if isinstance(index, Tensor) else torch.as_tensor(index, device="cpu")
    if tensor.dtype.is_floating_point and tensor.numel() == 0:  # an empty list
        return tensor.long()
    if tensor.dtype == torch.uint8 or not is_integer(tensor):  # it may be a mask
        raise TypeError(
            f"indices of a matcher must be integers, int32 or int64; got {tensor.dtype}"
        )
    return tensor.long()


def from_pairs(
    indices: Sequence[Pair], counts: Sequence[int], queries: int, device: torch.device
) -> Tensor:
    """Convert pairs to an assignment `[B, T]` int64: the inverse of `pairs`.

    Waits for the device if the indices are on a GPU.

    Raises:
        ValueError: the pairs are not one-to-one (see `problem_of`).
    """
    problem = problem_of(indices, counts, queries)
    if problem is not None:
        raise ValueError(f"the matcher must match one-to-one; {problem}")
    assignment = torch.full((len(indices), max((0, *counts))), -1, device=device)
    for row, (query, segment) in zip(assignment, indices, strict=True):
        row[segment.to(device)] = query.to(device)
    return assignment


def _assert_one_to_one(name: str, index: Tensor, size: int) -> None:
    if index.device.type == "cpu":  # on a GPU, a failed assertion would break the CUDA context
        ordered = index.sort().values
        repeated = (ordered[1:] == ordered[:-1]).any()
        outside = ((ordered < 0) | (ordered >= size)).any()
        message = (
            f"the matcher must match one-to-one; it gave a {name} twice or out of 0..{size - 1}"
        )
        torch._assert_async(~(repeated | outside), message)


def problem_of(indices: Sequence[Pair], counts: Sequence[int], queries: int) -> str | None:
    """Return why pairs do not match `queries` and `counts` segments one-to-one; None if they do.

    `torch.compile` cannot branch on values; under it, invalid pairs on a CPU raise an error at run
    time instead.
    """
    if len(indices) != len(counts):
        return f"it gave pairs of {len(indices)} images for {len(counts)}"
    for image, ((query, segment), count) in enumerate(zip(indices, counts, strict=True)):
        if query.shape != segment.shape or query.ndim != 1:
            return (
                f"for image {image} it gave queries of shape {list(query.shape)} and segments of "
                f"shape {list(segment.shape)}"
            )
        for name, index, size in (("query", query, queries), ("segment", segment, count)):
            if torch.compiler.is_compiling():
                _assert_one_to_one(name, index, size)
                continue
            values = index.unique()
            if len(values) < len(index):
                return f"for image {image} it gave a {name} more than once: {index.tolist()}"
            if len(values) and not 0 <= int(values[0]) <= int(values[-1]) < size:
                return f"for image {image} it gave a {name} out of 0..{size - 1}: {index.tolist()}"
    return None
