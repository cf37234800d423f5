"""Batched assignment, from a float32 cost tensor to int64 index tensors, conversions included.

The baseline (`reference`) calls SciPy once per problem, as matchers do today. SciPy's optimum is
also the ground truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from harness.comparison import NATIVE, REFERENCE, Comparison, Floor, Provider
from harness.plugin import comparison_test
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import mfkernels

Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """Costs `[B, R, C]` in float32; problem b uses only its first `columns[b]` columns."""

    cost: Tensor
    columns: list[int]

    @property
    def ragged(self) -> bool:
        return any(count != self.cost.shape[-1] for count in self.columns)


def detr(problems: int, queries: int, targets: int, generator: torch.Generator) -> Tensor:
    """A mask cost from U(0, 20) minus a softmax probability, as in DETR's matching cost."""
    probability = torch.randn(problems, queries, targets, generator=generator).softmax(-1)
    return 20 * torch.rand(problems, queries, targets, generator=generator) - probability


def collapse(problems: int, queries: int, targets: int, generator: torch.Generator) -> Tensor:
    """Nearly identical queries, as early in training: the solver needs long augmenting paths."""
    query = torch.rand(problems, queries, 1, generator=generator)
    target = torch.rand(problems, 1, targets, generator=generator)
    return query + 3 * target + 0.1 * torch.rand(problems, queries, targets, generator=generator)


def uniform(problems: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.rand(problems, rows, columns, generator=generator)


def ties(problems: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Only ten distinct costs, so there are many optima and many equally near columns."""
    return torch.randint(10, (problems, rows, columns), generator=generator).float()


CPU_CASES: dict[str, tuple[Callable[..., Tensor], int, int, int, bool]] = {
    "a 96x100x20": (detr, 96, 100, 20, False),
    "b 96x100x(1..40)": (detr, 96, 100, 40, True),
    "c 160x100x50": (detr, 160, 100, 50, False),
    "d 20x300x100": (detr, 20, 300, 100, False),
    "e 8x512x512": (uniform, 8, 512, 512, False),
    "f 1x2000x2000": (uniform, 1, 2000, 2000, False),
    "g 96x100x20 collapse": (collapse, 96, 100, 20, False),
    "h 20x300x100 collapse": (collapse, 20, 300, 100, False),
    "i 8x512x512 ties": (ties, 8, 512, 512, False),
}
GPU_CASES: dict[str, tuple[Callable[..., Tensor], int, int, int, bool]] = {
    "96x100x20": (detr, 96, 100, 20, False),
    "576x100x(1..40)": (detr, 576, 100, 40, True),
    "160x100x50": (detr, 160, 100, 50, False),
    "208x300x100": (detr, 208, 300, 100, False),
    "208x300x300": (detr, 208, 300, 300, False),
    "96x100x100 uniform": (uniform, 96, 100, 100, False),
    "96x100x20 collapse": (collapse, 96, 100, 20, False),
    "96x100x40 collapse": (collapse, 96, 100, 40, False),
    "96x100x100 collapse": (collapse, 96, 100, 100, False),
}


def make_case(case: str, device: torch.device, shrink: bool) -> Case:
    draw, problems, queries, targets, ragged = (CPU_CASES | GPU_CASES)[case]
    if shrink:
        problems, queries, targets = 3, min(queries, 40), min(targets, 30)
    generator = torch.Generator().manual_seed(0)
    cost = draw(problems, queries, targets, generator).to(device)
    columns = [targets] * problems
    if ragged:
        columns = torch.randint(1, targets + 1, (problems,), generator=generator).tolist()
    return Case(cost, columns)


def pairs_of_numpy(rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)


def loop(solve: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], case: Case) -> Pairs:
    """Call the solver once per problem, as matchers do with SciPy today."""
    costs = case.cost.cpu().numpy()
    return [
        pairs_of_numpy(*solve(cost[:, :count]))
        for cost, count in zip(costs, case.columns, strict=True)
    ]


def native(case: Case) -> Callable[[], Pairs | Tensor]:
    counts = torch.tensor(case.columns, device=case.cost.device) if case.ragged else None
    return lambda: mfkernels.batch_linear_assignment(case.cost, col_counts=counts)


def padded(case: Case, value: float) -> Tensor:
    """Costs with unused columns set to `value`, for solvers that do not support ragged counts."""
    used = torch.arange(case.cost.shape[-1])[None] < torch.tensor(case.columns)[:, None]
    return torch.where(used[:, None].to(case.cost.device), case.cost, value)


def lapx_batch(name: str, case: Case) -> Callable[[], Pairs]:
    import lap

    solver = getattr(lap, f"{name}_batch")

    def solve() -> Pairs:
        cost = padded(case, 1e3) if case.ragged else case.cost
        threads = torch.get_num_threads()
        found = solver(cost.numpy(), extend_cost=True, return_cost=False, n_threads=threads)
        pairs = [pairs_of_numpy(*pair) for pair in zip(*found, strict=True)]
        if not case.ragged:
            return pairs
        kept = [columns < count for (_, columns), count in zip(pairs, case.columns, strict=True)]
        return [(r[keep], c[keep]) for (r, c), keep in zip(pairs, kept, strict=True)]

    return solve


def lapx_loop(name: str, case: Case) -> Callable[[], Pairs]:
    import lap

    solver = partial(getattr(lap, name), extend_cost=True, return_cost=False)
    return lambda: loop(solver, case)


def lapjv(case: Case) -> Callable[[], Pairs]:
    from lapjv import lapjv as solver

    def square(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = max(cost.shape)
        full = np.zeros((side, side), cost.dtype)
        full[: cost.shape[0], : cost.shape[1]] = cost
        columns = solver(full)[0][: cost.shape[0]]
        rows = np.flatnonzero(columns < cost.shape[1])
        return rows, columns[rows]

    return lambda: loop(square, case)


def torch_linear_assignment(case: Case) -> Callable[[], Tensor]:
    from torch_linear_assignment import batch_linear_assignment

    # This solver expects the smaller side first and does not support ragged counts.
    cost = padded(case, 1e3).transpose(1, 2).contiguous()
    columns = torch.tensor(case.columns, device=cost.device)[:, None]

    def solve() -> Tensor:
        """The result in our format: the column assigned to each row, -1 for none."""
        queries = batch_linear_assignment(cost)
        problems, targets = queries.shape
        found = queries.new_full((problems, cost.shape[2]), -1)
        order = torch.arange(targets, device=cost.device).expand_as(queries)
        return found.scatter(1, queries, torch.where(order < columns, order, -1))

    return solve


def totals(case: Case, found: Tensor | Pairs) -> list[Tensor]:
    """Total cost of each problem, in fp64."""
    cost = case.cost.double().cpu()
    if isinstance(found, Tensor):
        found = mfkernels.assignment_to_pairs(found.cpu())
    sums = [c[rows, columns].sum() for c, (rows, columns) in zip(cost, found, strict=True)]
    return [torch.stack(sums)]


def excess(found: list[Tensor], best: list[Tensor]) -> float:
    """Largest deviation of a total cost from the optimum, relative to max(1, |optimum|)."""
    return float(((found[0] - best[0]).abs() / best[0].abs().clamp(min=1)).max())


def make(name: str, device: torch.device, shrink: bool) -> Comparison:
    case = make_case(name, device, shrink)

    def build(solver: Callable[[Case], Callable[[], Tensor | Pairs]]) -> Provider:
        return Provider(solver(case), result=partial(totals, case))

    lapx = {
        f"lapx-{name}{kind}": partial(build, partial(solve, name))
        for name in ("lapjvr", "lapjvh", "lapjvs")
        for kind, solve in (("", lapx_loop), ("-batch", lapx_batch))
    }
    return Comparison(
        {
            NATIVE: lambda: build(native),
            REFERENCE: lambda: build(lambda case: lambda: loop(linear_sum_assignment, case)),
            **lapx,
            "lapjv": lambda: build(lapjv),
            "torch-linear-assignment": lambda: build(torch_linear_assignment),
        },
        truth=lambda: totals(case, loop(linear_sum_assignment, case)),
        error=excess,
        tolerance=1e-6,
        floor=Floor(0, 4 * case.cost.numel()),
    )


if torch.cuda.is_available():
    test_assignment = comparison_test(
        GPU_CASES, [NATIVE, REFERENCE, "torch-linear-assignment"], make
    )
else:
    LAPX = [f"lapx-{name}{kind}" for name in ("lapjvr", "lapjvh", "lapjvs")
            for kind in ("", "-batch")]  # fmt: skip
    test_assignment = comparison_test(CPU_CASES, [NATIVE, REFERENCE, *LAPX, "lapjv"], make)
