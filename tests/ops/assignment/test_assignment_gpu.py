"""The CUDA kernel of `assignment` on a device: parity with SciPy, streams, graphs, no waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.assignment_driver import run
from torch import Tensor

import mfkernels
from mfkernels import backend
from mfkernels.ops.assignment import batch_linear_assignment_with_status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(not backend.part("cuda").usable, reason="needs the native CUDA library"),
]


@pytest.fixture(autouse=True)
def native():
    with mfkernels.use_backend("native"):
        yield


def solve_on_device(
    cost: np.ndarray,
    row_counts: np.ndarray,
    column_counts: np.ndarray,
    maximize: bool,
    strict: bool,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The driver's interface on the device, memory order of the costs kept."""
    base = cost.transpose(0, 2, 1) if not cost.flags.c_contiguous else cost
    tensor = torch.from_numpy(np.ascontiguousarray(base)).cuda()
    tensor = tensor if base is cost else tensor.transpose(1, 2)
    found = batch_linear_assignment_with_status(
        tensor,
        torch.from_numpy(row_counts).cuda(),
        torch.from_numpy(column_counts).cuda(),
        maximize,
        strict,
    )
    assignment, status = (part.cpu().numpy() for part in found)
    return assignment, status


def test_random_problems_equal_scipy() -> None:
    assert run(solve_on_device, 100_000, seed=5, batch=250) > 100


@pytest.mark.parametrize("largest", [130, 700])
def test_large_problems_equal_scipy(largest: int) -> None:
    run(solve_on_device, 40, seed=6, largest=largest, batch=4)


@pytest.mark.parametrize("shape", [(2, 2000, 2000), (2, 300, 2500), (1, 4000, 50), (2, 3000, 3000)])
def test_shapes_beyond_shared_memory(shape: tuple[int, int, int]) -> None:
    cost = torch.rand(shape)
    here = mfkernels.batch_linear_assignment(cost)
    there = mfkernels.batch_linear_assignment(cost.cuda()).cpu()
    for problem, a, b in zip(cost.double(), here, there, strict=True):
        rows_a, rows_b = (a >= 0).nonzero().flatten(), (b >= 0).nonzero().flatten()
        torch.testing.assert_close(
            problem[rows_a, a[rows_a]].sum(), problem[rows_b, b[rows_b]].sum(), rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_status_and_substitutes_as_on_the_cpu(dtype: torch.dtype) -> None:
    cost = torch.randn(300, 9, 6).to(dtype)
    for value in (float("nan"), float("inf"), -float("inf")):
        cost[torch.rand(cost.shape) < 0.2] = value
    for here, there in zip(
        batch_linear_assignment_with_status(cost, strict=True),
        batch_linear_assignment_with_status(cost.cuda(), strict=True),
        strict=True,
    ):
        assert torch.equal(here, there.cpu())


def test_does_not_wait_for_the_device() -> None:
    cost, counts = torch.rand(6, 4, 20, 100, device="cuda"), torch.tensor([20, 0, 5, 1]).cuda()
    mfkernels.batch_linear_assignment(cost, counts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mfkernels.batch_linear_assignment(cost, counts)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream_and_in_a_graph() -> None:
    cost = torch.rand(8, 100, 20, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mfkernels.batch_linear_assignment(cost)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mfkernels.batch_linear_assignment(cost)
    for _ in range(3):
        cost.copy_(torch.rand(8, 100, 20))
        graph.replay()
        assert torch.equal(captured, mfkernels.batch_linear_assignment(cost))


def test_same_result_every_time() -> None:
    cost = torch.randint(0, 3, (64, 40, 60), device="cuda").float()
    first = mfkernels.batch_linear_assignment(cost)
    assert all(torch.equal(first, mfkernels.batch_linear_assignment(cost)) for _ in range(10))


def test_opcheck_and_compile() -> None:
    cost, counts = torch.randn(3, 7, 5, device="cuda"), torch.tensor([7, 3, 0], device="cuda")
    torch.library.opcheck(torch.ops.mfkernels.assignment, (cost, counts, None, False, False))

    def match(cost: Tensor) -> Tensor:
        return mfkernels.batch_linear_assignment(2 * cost) + 1

    assert torch.equal(torch.compile(match, fullgraph=True)(cost), match(cost))


def test_counts_out_of_range_are_clamped() -> None:
    assignment = mfkernels.batch_linear_assignment(
        torch.rand(2, 3, 4, device="cuda"), torch.tensor([-1, 9], device="cuda")
    )
    assert (assignment >= 0).sum(-1).tolist() == [0, 3]
