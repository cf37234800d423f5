"""Batched assignment against its peers: float32 tensor in, int64 tensors out, conversions included.

    python benchmarks/bench_assignment.py                 all cases of this machine
    python benchmarks/bench_assignment.py --cases a b     some of them
    pytest benchmarks/bench_assignment.py                 the same under pytest-benchmark

A provider whose total cost is not the optimum is reported as wrong, without a time.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.report import RESULTS, show, write
from harness.timing import Row, interleaved, rows
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import mfkernels

Pairs = list[tuple[Tensor, Tensor]]
BASELINE = "scipy loop"


@dataclass(frozen=True)
class Case:
    """Costs `[B, R, C]` float32, of which problem b uses the first `columns[b]` columns."""

    cost: Tensor
    columns: list[int]

    @property
    def ragged(self) -> bool:
        return any(count != self.cost.shape[-1] for count in self.columns)


def detr(problems: int, queries: int, targets: int, generator: torch.Generator) -> Tensor:
    """Minus a softmax probability plus a mask cost of U(0, 20)."""
    probability = torch.randn(problems, queries, targets, generator=generator).softmax(-1)
    return 20 * torch.rand(problems, queries, targets, generator=generator) - probability


def collapse(problems: int, queries: int, targets: int, generator: torch.Generator) -> Tensor:
    """All queries alike, as early in training: long augmenting paths."""
    query = torch.rand(problems, queries, 1, generator=generator)
    target = torch.rand(problems, 1, targets, generator=generator)
    return query + 3 * target + 0.1 * torch.rand(problems, queries, targets, generator=generator)


def uniform(problems: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.rand(problems, rows, columns, generator=generator)


CPU_CASES: dict[str, tuple[Callable[..., Tensor], int, int, int, bool]] = {
    "a 96x100x20": (detr, 96, 100, 20, False),
    "b 96x100x(1..40)": (detr, 96, 100, 40, True),
    "c 160x100x50": (detr, 160, 100, 50, False),
    "d 20x300x100": (detr, 20, 300, 100, False),
    "e 8x512x512": (uniform, 8, 512, 512, False),
    "f 1x2000x2000": (uniform, 1, 2000, 2000, False),
    "g 96x100x20 collapse": (collapse, 96, 100, 20, False),
    "h 20x300x100 collapse": (collapse, 20, 300, 100, False),
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


def make_case(name: str, device: torch.device) -> Case:
    cases = CPU_CASES if device.type == "cpu" else GPU_CASES
    draw, problems, queries, targets, ragged = cases[name]
    generator = torch.Generator().manual_seed(0)
    cost = draw(problems, queries, targets, generator).to(device)
    columns = [targets] * problems
    if ragged:
        columns = torch.randint(1, targets + 1, (problems,), generator=generator).tolist()
    return Case(cost, columns)


def pairs_of_numpy(rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)


def loop(solve: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], case: Case) -> Pairs:
    """One call a problem, as matchers do with SciPy today."""
    costs = case.cost.cpu().numpy()
    return [
        pairs_of_numpy(*solve(cost[:, :count]))
        for cost, count in zip(costs, case.columns, strict=True)
    ]


def ours(case: Case, counts: Tensor | None) -> Tensor:
    return mfkernels.batch_linear_assignment(case.cost, col_counts=counts)


def padded(case: Case, value: float) -> Tensor:
    """Columns that are not in use as constant costs, for solvers without ragged counts."""
    used = torch.arange(case.cost.shape[-1])[None] < torch.tensor(case.columns)[:, None]
    return torch.where(used[:, None].to(case.cost.device), case.cost, value)


def lapx_providers(case: Case) -> dict[str, Callable[[], Pairs]]:
    import lap

    def batch(solver: Callable[..., tuple[list[np.ndarray], list[np.ndarray]]]) -> Pairs:
        cost = padded(case, 1e3) if case.ragged else case.cost
        threads = torch.get_num_threads()
        found = solver(cost.numpy(), extend_cost=True, return_cost=False, n_threads=threads)
        pairs = [pairs_of_numpy(*pair) for pair in zip(*found, strict=True)]
        if not case.ragged:
            return pairs
        kept = [columns < count for (_, columns), count in zip(pairs, case.columns, strict=True)]
        return [(r[keep], c[keep]) for (r, c), keep in zip(pairs, kept, strict=True)]

    def one(solver: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Pairs:
        return loop(lambda cost: solver(cost, extend_cost=True, return_cost=False), case)

    providers: dict[str, Callable[[], Pairs]] = {}
    for name in ("lapjvr", "lapjvh", "lapjvs"):
        single, many = getattr(lap, name), getattr(lap, f"{name}_batch")
        providers[f"lapx {name} loop"] = lambda solver=single: one(solver)

        providers[f"lapx {name}_batch"] = lambda solver=many: batch(solver)
    return providers


def lapjv_provider(case: Case) -> Callable[[], Pairs]:
    import lapjv

    def square(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = max(cost.shape)
        full = np.zeros((side, side), cost.dtype)
        full[: cost.shape[0], : cost.shape[1]] = cost
        columns = lapjv.lapjv(full)[0][: cost.shape[0]]
        rows = np.flatnonzero(columns < cost.shape[1])
        return rows, columns[rows]

    return lambda: loop(square, case)


def providers_of(case: Case) -> dict[str, Callable[[], Tensor | Pairs]]:
    """Ours and every peer that is installed."""
    device = case.cost.device
    counts = torch.tensor(case.columns, device=device) if case.ragged else None
    providers: dict[str, Callable[[], Tensor | Pairs]] = {
        BASELINE: lambda: loop(linear_sum_assignment, case),
        "mfkernels": lambda: ours(case, counts),
    }
    if device.type == "cpu":
        if importlib.util.find_spec("lap") is not None:
            providers.update(lapx_providers(case))
        if importlib.util.find_spec("lapjv") is not None:
            providers["src-d lapjv loop"] = lapjv_provider(case)
    elif importlib.util.find_spec("torch_linear_assignment") is not None:
        from torch_linear_assignment import batch_linear_assignment

        # It wants the smaller side first, and has no ragged counts.
        cost = padded(case, 1e3).transpose(1, 2).contiguous()
        providers["torch-linear-assignment"] = lambda: batch_linear_assignment(cost)
    return providers


def totals(case: Case, found: Tensor | Pairs, transposed: bool) -> Tensor:
    """Total cost of each problem, fp64."""
    cost = case.cost.double().cpu()
    if isinstance(found, Tensor):
        found = mfkernels.assignment_to_indices(found.cpu())
        if transposed:
            found = [
                (columns[rows < count], rows[rows < count])
                for (rows, columns), count in zip(found, case.columns, strict=True)
            ]
    return torch.stack(
        [c[rows, columns].sum() for c, (rows, columns) in zip(cost, found, strict=True)]
    )


def run_case(name: str, device: torch.device, seconds: float = 2.0) -> list[Row]:
    """Check every provider for optimality, then time those that are right."""
    case = make_case(name, device)
    providers = providers_of(case)
    truth = totals(case, providers[BASELINE](), transposed=False)
    right = {}
    for provider, solve in providers.items():
        total = totals(case, solve(), transposed=provider == "torch-linear-assignment")
        if torch.allclose(total, truth, rtol=1e-6, atol=1e-6):
            right[provider] = solve
        else:
            print(f"{name}: {provider} is wrong by up to {(total - truth).abs().max():.3g}")
    return rows("assignment", name, device, interleaved(right, device, seconds), BASELINE)


DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
ALL = [(name, d) for d in DEVICES for name in (CPU_CASES if d.type == "cpu" else GPU_CASES)]


@pytest.mark.parametrize(("name", "device"), ALL, ids=lambda value: str(value).replace(" ", "-"))
def test_assignment(benchmark, name: str, device: torch.device) -> None:
    case = make_case(name, device)
    benchmark.extra_info["rows"] = [vars(row) for row in run_case(name, device)]
    counts = torch.tensor(case.columns, device=device) if case.ragged else None
    benchmark(ours, case, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=str(DEVICES[-1]))
    parser.add_argument("--cases", nargs="*", default=[], help="first words of case names")
    parser.add_argument("--seconds", type=float, default=2.0, help="time a case")
    parser.add_argument("--json", type=Path, help=f"where to write rows, for example in {RESULTS}")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    result: list[Row] = []
    for name in CPU_CASES if device.type == "cpu" else GPU_CASES:
        if not arguments.cases or name.split()[0] in arguments.cases:
            result += run_case(name, device, arguments.seconds)
            show(row for row in result if row.case == name)
    if arguments.json:
        write(arguments.json, result, device)


if __name__ == "__main__":
    main()
