"""Linear assignment, one SciPy call per problem."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STATUS_NAN = 1
STATUS_NEGATIVE_INFINITY = 2
STATUS_POSITIVE_INFINITY = 4
STATUS_INFEASIBLE = 8

_LARGE = 2.0**960
"""If a finite cost is at least this large, all are divided by 2^64, so that no sum overflows."""


def solve(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Minimise the total cost of one problem `[R, C]`, float64; costs need not be finite.

    +inf means a missing edge; NaN and -inf count as missing too, and are reported. If there is no
    complete matching without missing edges, they get one finite cost so large that as few as
    possible are used.

    Returns the row and column indices, and the status bits.
    """
    # Imported here, because SciPy is slow to import and only this fallback needs it.
    from scipy.optimize import linear_sum_assignment

    status = 0
    status |= STATUS_NAN if np.isnan(cost).any() else 0
    status |= STATUS_NEGATIVE_INFINITY if np.isneginf(cost).any() else 0
    status |= STATUS_POSITIVE_INFINITY if np.isposinf(cost).any() else 0
    present = np.isfinite(cost)
    edges = np.where(present, cost, np.inf)
    try:
        rows, columns = linear_sum_assignment(edges)
    except ValueError:
        status |= STATUS_INFEASIBLE
        low, high = (edges[present].min(), edges[present].max()) if present.any() else (0.0, 0.0)
        substitute = high + (1 + min(cost.shape)) * max(high - low, 1.0)
        substitute = min(substitute, np.finfo(np.float64).max)
        rows, columns = linear_sum_assignment(np.where(present, cost, substitute))
    return rows, columns, status


def linear_assignment(
    cost: Tensor, row_counts: Tensor | None, col_counts: Tensor | None, maximize: bool
) -> tuple[Tensor, Tensor]:
    """Solve a batch `[B, R, C]`; problem b is its top left `row_counts[b], col_counts[b]` corner.

    Returns the column of each row `[B, R]` int64 (-1: none) and the status `[B]` int32.
    """
    batch, rows, columns = cost.shape
    matrices = cost.detach().to("cpu", torch.float64).numpy()
    row_list = _checked("row_counts", row_counts, batch, rows)
    col_list = _checked("col_counts", col_counts, batch, columns)
    assignment = torch.full((batch, rows), -1, dtype=torch.int64, device="cpu")
    status = torch.zeros(batch, dtype=torch.int32, device="cpu")
    if cost.numel() == 0:
        return assignment.to(cost.device), status.to(cost.device)
    for b, (r, c) in enumerate(zip(row_list, col_list, strict=True)):
        matrix = matrices[b, :r, :c]
        if (np.isfinite(matrix) & (np.abs(matrix) >= _LARGE)).any():
            matrix = matrix * 2.0**-64
        row_index, col_index, status[b] = solve(-matrix if maximize else matrix)
        assignment[b, torch.from_numpy(row_index)] = torch.from_numpy(col_index)
    return assignment.to(cost.device), status.to(cost.device)


def _checked(name: str, counts: Tensor | None, batch: int, limit: int) -> list[int]:
    values: list[int] = [limit] * batch if counts is None else counts.tolist()
    for b, value in enumerate(values):
        if not 0 <= value <= limit:
            raise RuntimeError(f"{name}[{b}] is {value}, expected 0 to {limit}")
    return values
