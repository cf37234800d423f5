"""linear_sum_assignment and batch_linear_assignment against SciPy, on every backend there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.assignment_driver import run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import mfkernels
from mfkernels import backend, native
from mfkernels.ops.assignment import (
    STATUS_INFEASIBLE,
    STATUS_NAN,
    STATUS_NEGATIVE_INFINITY,
    STATUS_POSITIVE_INFINITY,
    batch_linear_assignment_with_status,
)

BACKENDS = ["reference", "native"] if backend.part("cpu").usable else ["reference"]
needs_native = pytest.mark.skipif(
    not backend.part("cpu").usable, reason="the native CPU library is not built"
)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(params=BACKENDS)
def served_by(request: pytest.FixtureRequest):
    with mfkernels.use_backend(request.param):
        yield request.param


def outcome(solver: Callable[..., tuple[np.ndarray, np.ndarray]], *arguments: object):
    """What a solver gives, an error's type and message included."""
    try:
        rows, columns = solver(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return rows.tolist(), columns.tolist()


def total(cost: Tensor, assignment: Tensor) -> float:
    rows = (assignment >= 0).nonzero().flatten()
    return cost.double()[rows, assignment[rows]].sum().item()


entries = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.integers(-2, 2).map(float),
    st.sampled_from([np.inf, 1e10, 1e-30]),
    st.sampled_from([np.nan, -np.inf, np.inf]),
)


@pytest.mark.usefixtures("served_by")
class TestNumPy:
    def test_equals_scipy_on_anything(self) -> None:
        @settings(deadline=None, max_examples=300)
        @given(
            hnp.arrays(
                np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0), elements=entries
            ),
            st.booleans(),
        )
        def check(cost: np.ndarray, maximize: bool) -> None:
            ours = outcome(mfkernels.linear_sum_assignment, cost, maximize)
            assert ours == outcome(linear_sum_assignment, cost, maximize)

        check()

    @pytest.mark.parametrize(
        "cost",
        [
            [1, 2, 3],
            np.zeros((2, 2, 2)),
            3.0,
            np.identity(3).astype(str),
            np.array([[1, None], [2, 3]], dtype=object),
            np.array([[1 + 2j]]),
            np.array([[1, 2], [3, 4]], dtype=np.longdouble),
            np.array([[np.nan, 1]]),
            np.array([[-np.inf, 1]]),
            np.array([[np.inf, np.inf]]),
        ],
        ids=lambda cost: f"{getattr(cost, 'dtype', type(cost).__name__)}{np.shape(cost)}",
    )
    def test_raises_what_scipy_raises(self, cost: object) -> None:
        ours, theirs = (
            outcome(solver, cost)
            for solver in (mfkernels.linear_sum_assignment, linear_sum_assignment)
        )
        assert isinstance(theirs[0], type)
        assert ours[0] is theirs[0]
        if theirs[0] is ValueError:
            assert ours[1] == theirs[1]

    @pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i4", "u8", "?"])
    @pytest.mark.parametrize("layout", ["C", "F", "reversed", "sliced", "packed"])
    def test_dtypes_and_layouts(self, dtype: str, layout: str) -> None:
        values = np.random.default_rng(0).integers(0, 50, (12, 9)).astype(dtype)
        if layout == "F":
            cost = np.asfortranarray(values)
        elif layout == "reversed":
            cost = values[::-1, ::-1]
        elif layout == "sliced":
            cost = np.repeat(np.repeat(values, 2, 0), 3, 1)[::2, ::3]
        elif layout == "packed":
            cost = np.zeros(values.shape, [("pad", "u1"), ("cost", dtype)])["cost"]
            cost[...] = values
        else:
            cost = values
        assert outcome(mfkernels.linear_sum_assignment, cost) == outcome(
            linear_sum_assignment, np.array(cost, dtype=float)
        )


@needs_native
@pytest.mark.parametrize("seed", range(4))
def test_many_random_problems_equal_scipy(seed: int) -> None:
    solver = native.numpy_module.batch_linear_assignment
    assert run(solver, 25_000, seed) > 100


@needs_native
def test_large_problems_equal_scipy() -> None:
    assert run(native.numpy_module.batch_linear_assignment, 60, seed=9, largest=300, batch=3) >= 0


@pytest.mark.usefixtures("served_by")
class TestTensors:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (3, 7), (40, 40), (20, 100)])
    def test_ragged_batches_reach_the_optimum(
        self, dtype: torch.dtype, rows: int, columns: int
    ) -> None:
        cost = torch.randn(2, 3, columns, rows).to(dtype).transpose(-1, -2)
        row_counts = torch.randint(0, rows + 1, (2, 3))
        column_counts = torch.randint(0, columns + 1, (3,))
        before = cost.clone()
        assignment = mfkernels.batch_linear_assignment(cost, row_counts, column_counts)
        assert torch.equal(cost, before)
        assert assignment.shape == (2, 3, rows)
        assert assignment.dtype == torch.int64
        for index in np.ndindex(2, 3):
            r, c = int(row_counts[index]), int(column_counts[index[1]])
            used = assignment[index][assignment[index] >= 0]
            assert len(used) == len(used.unique()) == min(r, c)
            assert (assignment[index][r:] == -1).all()
            assert (used < c).all()
            problem = cost[index][:r, :c].double()
            least = problem.numpy()[linear_sum_assignment(problem.numpy())].sum()
            assert total(cost[index], assignment[index]) == pytest.approx(least, rel=1e-12)

    def test_maximize(self) -> None:
        cost = torch.randn(5, 8, 6)
        assignment = mfkernels.batch_linear_assignment(cost, maximize=True)
        opposite = mfkernels.batch_linear_assignment(-cost)
        for b in range(5):
            assert total(cost[b], assignment[b]) == pytest.approx(-total(-cost[b], opposite[b]))

    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0), (3, 2, 0, 0)])
    def test_empty(self, shape: tuple[int, ...]) -> None:
        assignment, status = batch_linear_assignment_with_status(torch.empty(shape))
        assert assignment.shape == shape[:-1]
        assert (assignment == -1).all()
        assert status.shape == shape[:-2]
        assert (status == 0).all()

    def test_one_matrix_without_batch_dimension(self) -> None:
        cost = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        assert mfkernels.batch_linear_assignment(cost).tolist() == [1, 0, 2]

    def test_integers_and_requires_grad(self) -> None:
        cost = torch.tensor([[4, 1], [2, 0]])
        assert mfkernels.batch_linear_assignment(cost).tolist() == [1, 0]
        cost = cost.float().requires_grad_()
        assert not mfkernels.batch_linear_assignment(cost).requires_grad

    @pytest.mark.parametrize("counts", [3, [3, 1], torch.tensor([3, 1], dtype=torch.int32)])
    def test_forms_of_counts(self, counts: object) -> None:
        cost = torch.randn(4, 2, 5, 5)
        matched = mfkernels.batch_linear_assignment(cost, row_counts=counts) >= 0
        expected = torch.as_tensor(counts).expand(4, 2)
        assert torch.equal(matched.sum(-1), expected)

    def test_status_and_substitutes(self) -> None:
        inf, nan = float("inf"), float("nan")
        cost = torch.tensor(
            [
                [[1.0, 2.0], [3.0, 5.0]],
                [[nan, 2.0], [3.0, 5.0]],
                [[-inf, 2.0], [3.0, 5.0]],
                [[1.0, inf], [3.0, 5.0]],
                [[1.0, inf], [3.0, inf]],
                [[nan, nan], [nan, nan]],
                [[nan, -inf], [inf, 1.0]],
            ]
        )
        assignment, status = batch_linear_assignment_with_status(cost)
        assert status.tolist() == [
            0,
            STATUS_NAN,
            STATUS_NEGATIVE_INFINITY,
            STATUS_POSITIVE_INFINITY,
            STATUS_POSITIVE_INFINITY | STATUS_INFEASIBLE,
            STATUS_NAN | STATUS_INFEASIBLE,
            STATUS_NAN | STATUS_NEGATIVE_INFINITY | STATUS_POSITIVE_INFINITY | STATUS_INFEASIBLE,
        ]
        assert assignment[:5].tolist() == [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]]
        assert sorted(assignment[5].tolist()) == [0, 1]
        assert assignment[6].tolist() == [0, 1]

    def test_status_sees_only_what_is_in_use(self) -> None:
        cost = torch.zeros(1, 3, 3)
        cost[0, 2] = float("nan")
        _, status = batch_linear_assignment_with_status(cost, row_counts=[2])
        assert status.item() == 0

    def test_sign_of_infinity_is_that_of_the_minimised_cost(self) -> None:
        cost = torch.tensor([[-float("inf"), 2.0], [1.0, 5.0]])
        assignment, status = batch_linear_assignment_with_status(cost, maximize=True)
        assert assignment.tolist() == [1, 0]
        assert status.item() == STATUS_POSITIVE_INFINITY

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_few_substitutes_at_the_least_cost(self, dtype: torch.dtype) -> None:
        generator = np.random.default_rng(3)
        for _ in range(50):
            rows, columns = generator.integers(1, 9, 2)
            cost = torch.from_numpy(generator.normal(size=(rows, columns))).to(dtype)
            cost[torch.from_numpy(generator.random((rows, columns)) < 0.7)] = float("nan")
            assignment = mfkernels.batch_linear_assignment(cost)
            assert (assignment >= 0).sum() == min(rows, columns)
            # Any constant that outweighs all the rest gives the same optimum.
            heavy = cost.double().nan_to_num(nan=1e6)
            least = heavy.numpy()[linear_sum_assignment(heavy.numpy())].sum()
            assert total(heavy, assignment) == pytest.approx(least, rel=1e-12)

    @pytest.mark.parametrize("limit", [torch.finfo(torch.float32).max, 1e300])
    def test_enormous_costs_still_give_a_matching(self, limit: float) -> None:
        dtype = torch.float64 if limit > 1e39 else torch.float32
        cost = torch.full((6, 6), limit, dtype=dtype)
        cost[::2] = -limit
        cost[:, 0] = float("inf")
        assignment = mfkernels.batch_linear_assignment(cost)
        assert sorted(assignment.tolist()) == list(range(6))

    def test_costs_up_to_the_largest_number_reach_the_optimum(self) -> None:
        most = np.finfo(np.float64).max
        generator = np.random.default_rng(0)
        for _ in range(200):
            shape = generator.integers(2, 12, 2)
            cost = most * generator.choice([-1, 1, 1e-300], shape)
            if generator.integers(2):
                cost = most * generator.uniform(-1, 1, shape)
            maximize = bool(generator.integers(2))
            assignment = mfkernels.batch_linear_assignment(
                torch.from_numpy(cost), None, None, maximize
            )
            assert (assignment >= 0).sum() == min(shape)
            # By a power of two, which rounds nothing: sums stay finite.
            smaller = cost * 2.0**-20
            best = smaller[linear_sum_assignment(smaller, maximize)].sum()
            found = total(torch.from_numpy(smaller), assignment)
            assert found == pytest.approx(best, abs=most * 2.0**-60)

    @pytest.mark.parametrize(("rows", "columns"), [(60, 60), (50, 90), (90, 50)])
    @pytest.mark.parametrize("values", [1, 2, 5])
    def test_many_equal_costs_reach_the_optimum(self, rows: int, columns: int, values: int) -> None:
        cost = torch.randint(0, values, (20, rows, columns)).float()
        cost[:10] += torch.randint(0, values, (10, rows, 1))
        for problem, assignment in zip(cost, mfkernels.batch_linear_assignment(cost), strict=True):
            assert len(assignment[assignment >= 0].unique()) == min(rows, columns)
            least = problem.numpy()[linear_sum_assignment(problem.numpy())].sum()
            assert total(problem, assignment) == least

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_check_finite_raises(self, value: float) -> None:
        cost = torch.zeros(4, 2, 3)
        cost[2, 1, 1] = value
        with pytest.raises(ValueError, match=r"1 of 4 problems, the first of them problem 2"):
            mfkernels.batch_linear_assignment(cost, check_finite=True)
        mfkernels.batch_linear_assignment(cost[:2], check_finite=True)

    def test_strict_gives_the_indices_of_scipy_on_ties(self) -> None:
        cost = torch.randint(0, 4, (200, 12, 9)).float()
        assignment = mfkernels.batch_linear_assignment(cost, strict=True)
        for problem, columns in zip(cost, assignment, strict=True):
            rows, expected = linear_sum_assignment(problem.numpy())
            assert columns[rows].tolist() == expected.tolist()
            assert (columns >= 0).sum() == len(rows)

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            (([[1.0]],), TypeError, "cost must be a real tensor, got list"),
            ((torch.zeros(2, 2, dtype=torch.complex64),), TypeError, "complex64"),
            ((torch.zeros(3),), ValueError, r"cost must be \[..., R, C\], got shape \(3,\)"),
            ((torch.zeros(2, 3, 3), torch.zeros(2)), TypeError, "row_counts must be integers"),
            ((torch.zeros(2, 3, 3), [1, 1, 1]), ValueError, r"row_counts has shape \(3,\)"),
            ((torch.zeros(2, 3, 3), None, [1, 4]), RuntimeError, r"col_counts\[1\] is 4"),
            ((torch.zeros(2, 3, 3), [-1, 0]), RuntimeError, r"row_counts\[0\] is -1"),
        ],
    )
    def test_errors_name_the_argument(
        self, arguments: tuple[object, ...], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            mfkernels.batch_linear_assignment(*arguments)

    def test_indices(self) -> None:
        assignment = torch.tensor([[[2, -1, 0], [-1, -1, -1]]])
        pairs = mfkernels.assignment_to_pairs(assignment)
        assert [[rows.tolist(), columns.tolist()] for rows, columns in pairs] == [
            [[0, 2], [2, 0]],
            [[], []],
        ]
        rows, columns = mfkernels.assignment_to_pairs(assignment[0, 0])
        assert (rows.tolist(), columns.tolist()) == ([0, 2], [2, 0])
        with pytest.raises(ValueError, match="0-dim"):
            mfkernels.assignment_to_pairs(torch.tensor(1))
        with pytest.warns(FutureWarning, match="now called assignment_to_pairs"):
            earlier = mfkernels.assignment_to_indices(assignment[0])
        assert all(map(torch.equal, earlier[0], pairs[0]))


@needs_native
class TestOperator:
    def test_strided_input_is_not_copied_and_overlap_is_fine(self) -> None:
        row = torch.randn(1, 1, 9)
        cost = row.expand(4, 5, 9)
        assignment = mfkernels.batch_linear_assignment(cost)
        least = row.flatten().sort().values[:5].sum()
        torch.testing.assert_close(row.flatten()[assignment].sum(-1), least.expand(4))

    def test_every_subnormal_and_special_half(self) -> None:
        bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
        for dtype in (torch.float16, torch.bfloat16):
            value = bits.view(dtype)
            value = value[value.isfinite()].sort().values
            value = value[torch.randperm(len(value))]
            # One row, a cost and a zero: which of them is chosen shows the sign of the cost.
            pair = torch.stack([value, torch.zeros_like(value)], -1)[:, None]
            chosen = mfkernels.batch_linear_assignment(pair).flatten()
            assert torch.equal(chosen[value != 0] == 0, (value < 0)[value != 0])
            # Neighbouring values keep their order.
            ordered = value.sort().values.unique()
            pairs = torch.stack([ordered[1:], ordered[:-1]], -1)[:, None]
            assert (mfkernels.batch_linear_assignment(pairs) == 1).all()

    def test_many_threads_at_once(self) -> None:
        cost = torch.randn(64, 50, 60)
        expected = mfkernels.batch_linear_assignment(cost)
        results: list[Tensor] = []

        def work() -> None:
            for _ in range(20):
                results.append(mfkernels.batch_linear_assignment(cost))  # noqa: PERF401

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 80
        assert all(torch.equal(result, expected) for result in results)

    def test_one_thread_and_two_agree(self) -> None:
        cost = torch.randn(64, 50, 60)
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(mfkernels.batch_linear_assignment(cost))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(*results)

    def test_threads_sleep_between_calls(self) -> None:
        for _ in range(3):
            mfkernels.batch_linear_assignment(torch.rand(8, 300, 400))
        time.sleep(0.02)
        before = time.process_time()
        time.sleep(0.4)
        assert time.process_time() - before < 0.05

    def test_works_in_a_forked_child(self) -> None:
        cost = torch.randn(64, 50, 60)
        expected = mfkernels.batch_linear_assignment(cost)
        loader = torch.utils.data.DataLoader(
            [0, 1], num_workers=2, multiprocessing_context="fork", collate_fn=_Solve(cost)
        )
        for result in loader:
            assert torch.equal(result, expected)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_opcheck(self, dtype: torch.dtype) -> None:
        cost, counts = torch.randn(3, 7, 5).to(dtype), torch.tensor([7, 3, 0])
        for arguments in ((cost, counts, None, False, False), (cost, None, counts % 6, True, True)):
            torch.library.opcheck(torch.ops.mfkernels.assignment, arguments)
        torch.library.opcheck(torch.ops.mfkernels.assignment_reference, (cost, counts, None, False))

    def test_compiles_into_one_graph(self) -> None:
        def match(cost: Tensor, counts: Tensor) -> Tensor:
            return mfkernels.batch_linear_assignment((2 * cost).transpose(-1, -2), counts) + 1

        compiled = torch.compile(match, fullgraph=True, backend="aot_eager")
        cost, counts = torch.randn(2, 3, 7, 5), torch.tensor([5, 3, 0])
        for name in ("auto", "native", "reference"):
            with mfkernels.use_backend(name):
                assert torch.equal(compiled(cost, counts), match(cost, counts))
        assert torch.equal(compiled(cost[:1], counts), match(cost[:1], counts))

    def test_refuses_what_python_never_sends(self) -> None:
        operator = torch.ops.mfkernels.assignment
        with pytest.raises(RuntimeError, match=r"cost must be \[B, R, C\], got Float \[2, 2\]"):
            operator(torch.zeros(2, 2), None, None, False, False)
        with pytest.raises(RuntimeError, match="cost must be float16, bfloat16"):
            operator(torch.zeros(1, 2, 2, dtype=torch.int32), None, None, False, False)
        with pytest.raises(RuntimeError, match="row_counts must be a contiguous int64"):
            operator(torch.zeros(1, 2, 2), torch.zeros(1), None, False, False)


class _Solve:
    def __init__(self, cost: Tensor) -> None:
        self.cost = cost

    def __call__(self, _: object) -> Tensor:
        return mfkernels.batch_linear_assignment(self.cost)


def test_fake_cuda_tensors_pass_without_a_device() -> None:
    with torch._subclasses.FakeTensorMode():
        cost = torch.empty(6, 2, 100, 20, device="cuda")
        counts = torch.empty(2, dtype=torch.int64, device="cuda")
        assignment, status = batch_linear_assignment_with_status(
            cost.transpose(-1, -2), row_counts=counts
        )
    assert assignment.shape == (6, 2, 20)
    assert status.shape == (6, 2)
    assert assignment.device.type == status.device.type == "cuda"
