"""Minimum-cost assignment: NumPy with SciPy's contract, and batches of tensors on their device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mfkernels import backend, native
from mfkernels.checks import check_memory, check_tensor, is_inflated
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.assignment import reference
from mfkernels.ops.assignment.operator import assignment_reference
from mfkernels.ops.assignment.reference import (
    STATUS_INFEASIBLE,
    STATUS_NAN,
    STATUS_NEGATIVE_INFINITY,
    STATUS_POSITIVE_INFINITY,
)
from mfkernels.ops.common.arguments import MOST_ROWS

__all__ = [
    "STATUS_INFEASIBLE",
    "STATUS_NAN",
    "STATUS_NEGATIVE_INFINITY",
    "STATUS_POSITIVE_INFINITY",
    "assignment_to_indices",
    "assignment_to_pairs",
    "batch_linear_assignment",
    "batch_linear_assignment_with_status",
    "linear_sum_assignment",
]

Counts = Tensor | Sequence[int] | int | None

_NOT_FINITE = STATUS_NAN | STATUS_NEGATIVE_INFINITY | STATUS_POSITIVE_INFINITY
_CPU = torch.device("cpu")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def linear_sum_assignment(
    cost_matrix: ArrayLike, maximize: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Solve one linear assignment problem with `scipy.optimize.linear_sum_assignment`'s contract.

    The indices equal SciPy's, on ties too.

    Args:
        cost_matrix: `[R, C]`, anything that casts safely to float64. +inf means no edge.
        maximize: take the largest total instead of the smallest (then -inf means no edge).

    Returns:
        Row indices in ascending order and the column of each, both `[min(R, C)]` int64.

    Raises:
        ValueError: not a matrix; NaN or -inf in it (+inf when maximising); no complete matching.
        TypeError: the dtype does not cast safely to float64.
    """
    cost = np.asarray(cost_matrix)
    if cost.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {cost.ndim} array")
    _check_extent(cost)
    if cost.dtype not in (np.float16, np.float32, np.float64):
        cost = cost.astype(np.float64, casting="safe")
    if not cost.flags.aligned or any(stride % cost.itemsize for stride in cost.strides):
        cost = np.ascontiguousarray(cost)
    module, problem = native.numpy_module, native.parts["numpy"].problem
    if backend.select("assignment", _CPU, problem) == "native" and module is not None:
        rows, columns = module.linear_sum_assignment(cost, bool(maximize))
        return rows, columns
    cost = cost.astype(np.float64)
    if maximize:
        cost = -cost
    if np.isnan(cost).any() or np.isneginf(cost).any():
        raise ValueError("matrix contains invalid numeric entries")
    rows, columns, status = reference.solve(cost)
    if status & STATUS_INFEASIBLE:
        raise ValueError("cost matrix is infeasible")
    return rows, columns


def _check_extent(cost: NDArray[Any]) -> None:
    """Refuse a matrix whose indices or working memory would not fit."""
    if max(cost.shape) > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS} rows and columns, got shape {cost.shape}")
    strides = [stride // max(cost.itemsize, 1) for stride in cost.strides]
    if is_inflated(cost.shape, strides, cost.itemsize):
        raise ValueError(
            "expected a matrix with memory of its own, got a view of shape "
            f"{cost.shape} that repeats a little memory too often; copy it if it is meant"
        )


def batch_linear_assignment(
    cost: Tensor,
    row_counts: Counts = None,
    col_counts: Counts = None,
    maximize: bool = False,
    check_finite: bool = False,
    strict: bool = False,
) -> Tensor:
    """Solve a batch of linear assignment problems on the device of `cost`.

    Problem `[R, C]` matches `min(r, c)` of its first r rows and c columns at the least total cost,
    r and c being its counts (else R and C). Few targets and many queries: either may be the rows.

    Costs that are not finite never stop a batch: +inf is no edge; NaN and -inf count as no edge
    too. Where no complete matching uses real edges only, the missing ones get one finite cost above
    all others, so that a complete matching with as few of them as possible results (signs are those
    of the costs as they are minimised). `batch_linear_assignment_with_status` says which problems
    were affected.

    Args:
        cost: `[..., R, C]`, any strides; fp16, bf16, fp32 or fp64 (integers and bool go to fp64).
        row_counts: rows in use, broadcast to `[...]`; ints or an integer tensor. None: R.
        col_counts: columns in use, likewise. None: C.
        maximize: take the largest total instead of the smallest.
        check_finite: raise if a cost in use is NaN or infinite (waits for the device).
        strict: on ties choose SciPy's indices (slower). Otherwise any optimal assignment may come.

    Returns:
        `[..., R]` int64: the column of each row, -1 for a row without one.

    Raises:
        TypeError: `cost` is not a real tensor.
        ValueError: a shape does not fit, or `check_finite` found something.
        RuntimeError: a count is outside its range (on a GPU it is clamped instead).
    """
    assignment, status = batch_linear_assignment_with_status(
        cost, row_counts, col_counts, maximize, strict
    )
    if check_finite:
        bad = (status & _NOT_FINITE).flatten().nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"cost has NaN or infinite entries in {len(bad)} of {status.numel()} problems, "
                f"the first of them problem {bad[0]}; shape {tuple(cost.shape)}"
            )
    return assignment


@served_by_pytorch_where_kernels_fail("assignment")
def batch_linear_assignment_with_status(
    cost: Tensor,
    row_counts: Counts = None,
    col_counts: Counts = None,
    maximize: bool = False,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    """`batch_linear_assignment` with the status of each problem: what was found in its costs.

    Returns:
        The assignment `[..., R]` int64, and the status `[...]` int32: the sum of `STATUS_NAN`,
        `STATUS_NEGATIVE_INFINITY`, `STATUS_POSITIVE_INFINITY` (of the costs as they are minimised)
        and `STATUS_INFEASIBLE` (no complete matching without substitutes); 0 for a clean problem.
    """
    if not isinstance(cost, Tensor) or cost.is_complex():
        kind = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
        raise TypeError(f"cost must be a real tensor, got {kind}")
    check_tensor("cost", cost)
    if cost.dim() < 2:
        raise ValueError(f"cost must be [..., R, C], got shape {tuple(cost.shape)}")
    check_memory("cost", cost)
    leading, (rows, columns) = cost.shape[:-2], cost.shape[-2:]
    matrices = cost.detach()
    if matrices.dtype not in _FLOATS:
        matrices = matrices.to(torch.float64)
    if matrices.dim() != 3:
        matrices = matrices.reshape(math.prod(leading), rows, columns)
    arguments = (
        matrices,
        _counts("row_counts", row_counts, leading, cost.device),
        _counts("col_counts", col_counts, leading, cost.device),
        bool(maximize),
    )
    if backend.select("assignment", cost.device) == "native":
        assignment, status = torch.ops.mfkernels.assignment(*arguments, bool(strict))
    else:
        assignment, status = assignment_reference(*arguments)
    return assignment.reshape(*leading, rows), status.reshape(leading)


def _counts(
    name: str, counts: Counts, leading: Sequence[int], device: torch.device
) -> Tensor | None:
    """Counts as a contiguous int64 tensor `[prod(leading)]` on the device."""
    if counts is None:
        return None
    if not isinstance(counts, Tensor):
        try:
            counts = torch.tensor(counts, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be integers, got {counts!r}") from error
        if counts.numel() == 0:
            counts = counts.long()
    if counts.dtype.is_floating_point or counts.dtype.is_complex or counts.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {counts.dtype}")
    counts = counts.to(device, torch.int64, non_blocking=True)
    if counts.shape != leading:
        try:
            counts = counts.expand(leading)
        except RuntimeError:
            raise ValueError(
                f"{name} has shape {tuple(counts.shape)}, expected one that broadcasts to "
                f"the leading dimensions {tuple(leading)} of cost"
            ) from None
    return counts.contiguous().reshape(math.prod(leading))


def assignment_to_pairs(
    assignment: Tensor,
) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
    """SciPy's pair form: the rows that have a column, and their columns.

    The sizes depend on the data, so on a GPU this waits for the device.

    Args:
        assignment: `[..., R]` int64, from `batch_linear_assignment`.

    Returns:
        For `[R]` one pair of int64 tensors; otherwise a list with one pair per problem, in the
        row-major order of the leading dimensions.
    """
    if assignment.dim() == 0:
        raise ValueError("assignment must be [..., R], got a 0-dim tensor")
    if assignment.dim() == 1:
        rows = (assignment >= 0).nonzero().flatten()
        return rows, assignment[rows]
    flat = assignment.reshape(math.prod(assignment.shape[:-1]), assignment.shape[-1])
    return [
        (rows, row_columns[rows])
        for row_columns in flat
        for rows in [(row_columns >= 0).nonzero().flatten()]
    ]


def assignment_to_indices(
    assignment: Tensor,
) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
    """The earlier name of `assignment_to_pairs`, which goes away with the next release.

    torch-linear-assignment's function of this name gives something else: two tensors `[B, K]`.
    """
    warnings.warn(
        "assignment_to_indices is called assignment_to_pairs now and goes away with the next "
        "release; it does not give the two tensors [B, K] that torch-linear-assignment's function "
        "of the same name gives",
        FutureWarning,
        stacklevel=2,
    )
    return assignment_to_pairs(assignment)
