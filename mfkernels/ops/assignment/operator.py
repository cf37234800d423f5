"""The operators `assignment` (see csrc/operator_schemas.cpp) and `assignment_reference`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.checks import check_memory
from mfkernels.ops.assignment import reference
from mfkernels.ops.common.arguments import MOST_PROBLEMS, MOST_ROWS, check_argument
from mfkernels.ops.common.registration import register


def check(
    cost: Tensor,
    row_counts: Tensor | None,
    col_counts: Tensor | None,
    maximize: bool,
    strict: bool = False,
) -> None:
    check_argument("cost", cost, ("B", "R", "C"), cost)
    limits = {"problems": MOST_PROBLEMS, "rows": MOST_ROWS, "columns": MOST_ROWS}
    for (axis, most), size in zip(limits.items(), cost.shape, strict=True):
        if size > most:
            raise ValueError(f"cost must have at most {most} {axis}, got {size}")
    for name, counts in (("row_counts", row_counts), ("col_counts", col_counts)):
        if counts is not None:
            check_argument(name, counts, (cost.shape[0],), cost, torch.int64)


def fake(
    cost: Tensor,
    row_counts: Tensor | None,
    col_counts: Tensor | None,
    maximize: bool,
    strict: bool = False,
) -> tuple[Tensor, Tensor]:
    problems, rows, _ = cost.shape
    assignment = cost.new_empty((problems, rows), dtype=torch.int64)
    return assignment, cost.new_empty((problems,), dtype=torch.int32)


register("assignment", check=check, fake=fake)


# An opaque operator, so that the SciPy fallback does not break a graph of `torch.compile`.
@torch.library.custom_op(
    "mfkernels::assignment_reference",
    mutates_args=(),
    schema=(
        "(Tensor cost, Tensor? row_counts, Tensor? col_counts, bool maximize) -> (Tensor, Tensor)"
    ),
)
def assignment_reference(
    cost: Tensor, row_counts: Tensor | None, col_counts: Tensor | None, maximize: bool
) -> tuple[Tensor, Tensor]:
    check(cost, row_counts, col_counts, maximize)
    check_memory("cost", cost)
    return reference.linear_assignment(cost, row_counts, col_counts, maximize)


@assignment_reference.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    check(*arguments)
    return fake(*arguments)
