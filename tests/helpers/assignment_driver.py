"""Compares any solver with the batch interface of `_numpy` with SciPy, on random problems.

It does not import torch, so that it can also run under AddressSanitizer:
    python tests/helpers/assignment_driver.py MODULE.so --problems 100000
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy.optimize import linear_sum_assignment

POSITIVE_INFINITY, INFEASIBLE = 4, 8
"""Status bits of a problem, as in csrc/core/assignment.h."""
DISTRIBUTIONS = (
    *("uniform", "normal", "detr", "collapse", "integers", "clamped", "constant", "huge"),
)
LARGE = 2.0**960
"""Magnitude from which sums of costs may overflow. SciPy does not guard against that, so such costs
are scaled down for it.
"""
DTYPES = (np.float16, np.float32, np.float64)

# (cost, row_counts, column_counts, maximize=, strict=, threads=) -> (assignment, status)
Solver = Callable[..., tuple[np.ndarray, np.ndarray]]


@dataclass
class Batch:
    cost: np.ndarray
    row_counts: np.ndarray
    column_counts: np.ndarray
    maximize: bool

    @property
    def is_large(self) -> bool:
        finite = self.cost[np.isfinite(self.cost)].astype(np.float64)
        return bool((np.abs(finite) >= LARGE).any())


def draw_costs(rng: np.random.Generator, distribution: str, shape: tuple[int, int, int]):
    """Costs `[B, R, C]` in fp64 from one of `DISTRIBUTIONS`."""
    problems, rows, columns = shape
    if distribution == "uniform":
        return rng.random(shape)
    if distribution == "normal":
        return rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)
    if distribution == "detr":
        return (
            rng.uniform(0, 20, shape)
            - rng.dirichlet(np.ones(max(columns, 1)), shape[:2])[..., :columns]
        )
    if distribution == "collapse":
        query, target = rng.random((problems, rows, 1)), rng.random((problems, 1, columns))
        return query + 3 * target + 0.1 * rng.random(shape)
    if distribution == "integers":
        return rng.integers(-3, 4, shape).astype(np.float64)
    if distribution == "huge":  # near the largest number of the dtype that they are clipped to
        return np.finfo(np.float64).max * rng.choice([-1, 1, 0.3, 1e-300], shape)
    if distribution == "clamped":
        return np.where(rng.random(shape) < 0.4, 1e10, rng.normal(size=shape))
    return np.full(shape, rng.integers(-2, 3), dtype=np.float64)


def batches(problems: int, seed: int, largest: int = 40, batch: int = 50) -> Iterator[Batch]:
    """Batches of all kinds: ragged, transposed in memory, with forbidden pairs, in all dtypes."""
    rng = np.random.default_rng(seed)
    for _ in range(0, problems, batch):
        rows, columns = rng.integers(0, largest + 1, 2)
        if rng.random() < 0.25:
            columns = rows
        cost = draw_costs(rng, str(rng.choice(DISTRIBUTIONS)), (batch, rows, columns))
        missing = rng.choice([0.0, 0.0, 0.2, 0.7])
        maximize = bool(rng.random() < 0.25)
        dtype = DTYPES[rng.integers(len(DTYPES))]
        cost = np.clip(cost, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
        cost[rng.random(cost.shape) < missing] = -np.inf if maximize else np.inf
        if rng.random() < 0.5:
            cost = np.ascontiguousarray(cost.transpose(0, 2, 1)).transpose(0, 2, 1)
        full = rng.random() < 0.5
        yield Batch(
            cost,
            np.full(batch, rows) if full else rng.integers(0, rows + 1, batch),
            np.full(batch, columns) if full else rng.integers(0, columns + 1, batch),
            maximize,
        )


def compare(solver: Solver, batch: Batch, strict: bool, threads: int = 1) -> int:
    """Compare one batch with SciPy and return the number of infeasible problems.

    Raises:
        AssertionError: a result differs from SciPy's.
    """
    assignment, status = solver(
        batch.cost,
        batch.row_counts,
        batch.column_counts,
        maximize=batch.maximize,
        strict=strict,
        threads=threads,
    )
    infeasible = 0
    for b, (r, c) in enumerate(zip(batch.row_counts, batch.column_counts, strict=True)):
        cost = batch.cost[b, :r, :c].astype(np.float64)
        if batch.is_large:
            cost *= 2.0**-64  # a power of two, so that nothing is rounded
        where = f"problem {b} of {batch.cost.shape} {batch.cost.dtype}, counts {r} x {c}"
        rows = np.flatnonzero(assignment[b] >= 0)
        columns = assignment[b, rows]
        assert len(rows) == min(r, c), where
        assert len(set(columns.tolist())) == len(rows), where
        assert (rows < r).all(), where
        assert (columns < c).all(), where
        infinite = np.isinf(cost).any()
        assert bool(status[b] & POSITIVE_INFINITY) == bool(infinite), where
        try:
            expected = linear_sum_assignment(cost, maximize=batch.maximize)
        except ValueError:
            assert status[b] & INFEASIBLE, where
            infeasible += 1
            continue
        assert not status[b] & ~POSITIVE_INFINITY, where
        total, least = cost[rows, columns].sum(), cost[expected].sum()
        # Both are optimal up to fp64 rounding of sums of this magnitude.
        finite = np.abs(cost[np.isfinite(cost)])
        slack = (
            8 * np.finfo(np.float64).eps * (1 + min(r, c)) * (finite.max() if finite.size else 0)
        )
        assert abs(total - least) <= slack, f"{where}: {total} instead of {least}"
        if strict:
            assert np.array_equal(rows, expected[0]), where
            assert np.array_equal(columns, expected[1]), where
    return infeasible


def run(solver: Solver, problems: int, seed: int = 0, largest: int = 40, batch: int = 50) -> int:
    """Compare batches with SciPy, every other one in strict mode.

    Batches with very large costs are never strict: SciPy finds their optimum only after scaling.

    Returns:
        The number of infeasible problems.
    """
    infeasible = 0
    for turn, work in enumerate(batches(problems, seed, largest, batch)):
        infeasible += compare(
            solver, work, strict=turn % 2 == 0 and not work.is_large, threads=1 + turn % 3
        )
    return infeasible


def load(path: Path) -> ModuleType:
    name = path.name.split(".")[0]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--largest", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=50, help="problems per call")
    arguments = parser.parse_args()
    start = time.perf_counter()
    solver = load(arguments.module).batch_linear_assignment
    infeasible = run(solver, arguments.problems, arguments.seed, arguments.largest, arguments.batch)
    seconds = time.perf_counter() - start
    print(
        f"{arguments.problems} problems up to {arguments.largest} x {arguments.largest}, "
        f"{infeasible} of them infeasible: equal to SciPy, {seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
