"""A kernel that cannot be started: plain PyTorch serves the call, said once; or an error."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mfkernels
from mfkernels import backend, explain, use_backend
from mfkernels.backend import BackendError
from mfkernels.fallback import KernelError
from mfkernels.selfcheck.checks import _results
from mfkernels.selfcheck.inputs import SMALL
from mfkernels.selfcheck.problems import Problem, problems

CPU = torch.device("cpu")
WHY = "OutOfResources: out of resource: shared memory, Required: 163840, Hardware limit: 65536"

pytestmark = pytest.mark.skipif(
    not backend.part("cpu").usable, reason="needs a kernel that could fail"
)


class Failing:
    """An operator whose kernel cannot be started."""

    def __init__(self, message: str, error: type[Exception] = KernelError) -> None:
        self.error = error(message)
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        raise self.error


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backend, "_logged", set())
    backend.failures.clear()
    yield
    backend.failures.clear()


def problem_of(operation: str) -> Problem:
    return next(problem for problem in problems(CPU, SMALL) if problem.operation == operation)


def by_reference(problem: Problem) -> list[Tensor]:
    with use_backend("reference"):
        return _results(problem)


OPERATORS = {
    "assignment": "assignment",
    "matching_cost": "matching_cost",
    "mask_loss": "mask_loss",
    "focal_dice": "focal_dice",
    "semantic_segmentation": "semantic_segmentation",
    "panoptic_owners": "panoptic_owners",
}


@pytest.mark.parametrize("operation", OPERATORS)
def test_plain_pytorch_serves_the_call(
    operation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    problem, failing = problem_of(operation), Failing(WHY)
    monkeypatch.setattr(torch.ops.mfkernels, OPERATORS[operation], failing)
    expected = by_reference(problem)
    with use_backend("native"), pytest.raises(BackendError, match="OutOfResources") as caught:
        problem.function(*problem.inputs)
    assert isinstance(caught.value.__cause__, KernelError)
    caplog.set_level(logging.WARNING, "mfkernels")
    failing.calls = 0
    for _ in range(2):
        for result, same in zip(_results(problem), expected, strict=True):
            torch.testing.assert_close(result, same)
    assert failing.calls == 1, "it is remembered"
    (record,) = caplog.records
    assert f"{OPERATORS[operation]}: its kernel failed on cpu: {WHY}" in record.message
    assert WHY in str(explain())
    with use_backend("native"), pytest.raises(BackendError, match="OutOfResources"):
        problem.function(*problem.inputs)


@pytest.mark.parametrize(
    ("operation", "operator"),
    [
        ("mask_loss", "mask_loss_backward"),
        ("focal_dice", "focal_dice_backward"),
        ("focal_dice", "sigmoid_focal_loss_backward"),
        ("point_loss", "point_loss_backward"),
    ],
)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_plain_pytorch_gives_the_gradient(
    operation: str,
    operator: str,
    checkpointed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    problem, failing = problem_of(operation), Failing(WHY)
    expected = by_reference(problem)
    if checkpointed:
        recomputed = partial(checkpoint, problem.function, use_reentrant=False)
        problem = replace(problem, function=recomputed)
    monkeypatch.setattr(torch.ops.mfkernels, operator, failing)
    caplog.set_level(logging.WARNING, "mfkernels")
    for _ in range(2):
        found = _results(problem)
        assert not any(x.requires_grad for x in found)
        for result, same in zip(found, expected, strict=True):
            torch.testing.assert_close(result, same)
    assert failing.calls == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError, "CUDA error: an illegal memory access"), (TypeError, "missing argument")],
)
def test_other_errors_stay(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of("matching_cost")
    monkeypatch.setattr(torch.ops.mfkernels, "matching_cost", Failing(message, error))
    with pytest.raises(error, match=message):
        problem.function(*problem.inputs)
    assert not backend.failures


def test_tensors_by_keyword(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mfkernels, "assignment", Failing(WHY))
    cost = torch.tensor([[[4.0, 1.0], [2.0, 0.0]]])
    found, _ = mfkernels.batch_linear_assignment_with_status(cost=cost)
    assert found.tolist() == [[1, 0]]


def test_a_gpu_without_an_image_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "CUDA error: no kernel image is available for execution on the device\nCompile with"
    monkeypatch.setattr(torch.ops.mfkernels, "assignment", Failing(message, RuntimeError))
    cost = torch.tensor([[[4.0, 1.0], [2.0, 0.0]]])
    assert mfkernels.batch_linear_assignment(cost).tolist() == [[1, 0]]
    ((key, reason),) = backend.failures.items()
    assert key == ("assignment", CPU)
    assert reason.endswith("no kernel image is available for execution on the device")


def _refusing(error: Exception) -> Any:
    class Kernel:
        __name__ = "cost_kernel"

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def start(**arguments: Any) -> None:
                raise error

            return start

    return Kernel()


def test_what_triton_and_its_cache_refuse() -> None:
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources, PTXASError

    from mfkernels.triton.launcher import launch

    for error in (
        OutOfResources(163840, 65536, "shared memory"),
        PTXASError("ptxas does not know sm_121"),
        PermissionError(13, "Read-only file system", "cache"),
        OSError(28, "No space left on device"),
        RuntimeError("Triton Error [CUDA]: no kernel image is available"),
        subprocess.CalledProcessError(1, "gcc"),
        ImportError("failed to map segment from shared object"),
    ):
        with pytest.raises(KernelError, match=f"cost_kernel: {type(error).__name__}: ") as caught:
            launch(_refusing(error), (1,), x_ptr=torch.zeros(1))
        assert caught.value.__cause__ is error
    for error in (
        TypeError("a mistake of ours"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
        RuntimeError("Triton Error [CUDA]: misaligned address"),
    ):
        with pytest.raises(type(error)) as other:
            launch(_refusing(error), (1,), x_ptr=torch.zeros(1))
        assert other.value is error
