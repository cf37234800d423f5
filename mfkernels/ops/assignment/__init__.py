"""Minimum-cost assignment, for one NumPy matrix as in SciPy and for batches of tensors."""

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
from mfkernels.checks import FLOATS, check_memory, check_tensor, is_inflated
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
from mfkernels.targets import copied_to, is_integer

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


def linear_sum_assignment(
    cost_matrix: ArrayLike, maximize: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Solve one linear assignment problem, as `scipy.optimize.linear_sum_assignment` does.

    The indices are the same as SciPy's, also for ties.

    Args:
        cost_matrix: `[R, C]`, any dtype that casts safely to float64. +inf means no edge.
        maximize: find the largest total cost instead of the smallest; then -inf means no edge.

    Returns:
        The row indices in ascending order and the column of each row, both `[min(R, C)]` int64.

    Raises:
        ValueError: the input is not a matrix, it holds NaN or -inf (+inf if maximising), there is
            no complete matching, or it has more than 2^30 - 1 rows or columns.
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
    """Raise ValueError for a matrix whose indices or working memory would be too large."""
    if max(cost.shape) > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS} rows and columns, got shape {cost.shape}")
    strides = [stride // max(cost.itemsize, 1) for stride in cost.strides]
    if is_inflated(cost.shape, strides, cost.itemsize):
        raise ValueError(
            "expected a matrix with its own memory, got an expanded view of shape "
            f"{cost.shape} that repeats its memory too often; if this is intended, copy it"
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

    Each problem is a matrix `[R, C]`, of which the first r rows and c columns are in use. The
    result matches `min(r, c)` of them at the least total cost. Either the rows or the columns may
    be the smaller side.

    Costs that are not finite do not raise an error. An edge whose cost is +inf, -inf or NaN counts
    as missing. If there is no complete matching without missing edges, these get one finite cost
    above all others, so the result is a complete matching with as few of them as possible. (With
    `maximize`, the signs are those of the negated costs.) `batch_linear_assignment_with_status`
    reports which problems were affected.

    Args:
        cost: `[..., R, C]`, any strides; float16, bfloat16, float32 or float64. Integers and bool
            are converted to float64.
        row_counts: the rows in use, ints or an integer tensor that broadcasts to `[...]`. None: R.
        col_counts: the columns in use, in the same form. None: C.
        maximize: find the largest total cost instead of the smallest.
        check_finite: raise an error if a cost in use is NaN or infinite. Waits for the device.
        strict: for ties, choose the same indices as SciPy (slower). Otherwise, any optimal
            assignment may be returned.

    Returns:
        `[..., R]` int64: the column of each row, or -1 for a row without one.

    Raises:
        TypeError: `cost` is not a real tensor, or the counts are not integers.
        ValueError: a shape is wrong, or `check_finite` found a cost that is not finite.
        RuntimeError: a count is out of range (on a GPU it is clamped instead).
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
    """Solve as `batch_linear_assignment` does, and report what was found in the costs.

    Args:
        cost, row_counts, col_counts, maximize, strict: as in `batch_linear_assignment`.

    Returns:
        The assignment `[..., R]` int64, and the status of each problem `[...]` int32: 0, or the sum
        of `STATUS_NAN`, `STATUS_NEGATIVE_INFINITY`, `STATUS_POSITIVE_INFINITY` (with `maximize`, of
        the negated costs) and `STATUS_INFEASIBLE` (no complete matching without missing edges).
        The constants are in `mfkernels.ops.assignment`.

    Raises:
        TypeError, ValueError, RuntimeError: as in `batch_linear_assignment`.
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
    if matrices.dtype not in FLOATS:
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
    """Convert counts to a contiguous int64 tensor `[prod(leading)]` on the device."""
    if counts is None:
        return None
    if not isinstance(counts, Tensor):
        try:
            counts = torch.tensor(counts, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be integers, got {counts!r}") from error
        if counts.numel() == 0:
            counts = counts.long()
    if not is_integer(counts):
        raise TypeError(f"{name} must be integers, got {counts.dtype}")
    counts = copied_to(counts, device, torch.int64)
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
    """Convert an assignment to SciPy's form: the rows that have a column, and their columns.

    The sizes depend on the data, so on a GPU this waits for the device.

    Args:
        assignment: `[..., R]` int64, from `batch_linear_assignment`.

    Returns:
        For `[R]`, one pair of int64 tensors; otherwise a list with one pair per problem, in the
        row-major order of the leading dimensions.

    Raises:
        ValueError: `assignment` is 0-dim.
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
    """Deprecated: the former name of `assignment_to_pairs`; the next release removes it.

    The function of this name in torch-linear-assignment returns something else: two tensors
    `[B, K]`.
    """
    warnings.warn(
        "assignment_to_indices is now called assignment_to_pairs; the next release removes the old "
        "name. It does not return the two tensors [B, K] that torch-linear-assignment's function "
        "of the same name returns",
        FutureWarning,
        stacklevel=2,
    )
    return assignment_to_pairs(assignment)
