"""Run the problems and check results, gradients, determinism, synchronisation and CUDA graphs.

Large problems are also timed, and their memory is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mfkernels.backend import OPERATIONS, BackendError, failures, use_backend
from mfkernels.selfcheck import first_use
from mfkernels.selfcheck.inputs import ALIGNED, SMALL, ade20k
from mfkernels.selfcheck.predictions import predicted_ms
from mfkernels.selfcheck.problems import Problem, problems

DEFAULT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "assignment": (torch.float32, torch.float64),
    "loss_sums": (torch.float32,),
    "conv3x3": (torch.float32, torch.bfloat16),
    "group_norm": (torch.float32, torch.bfloat16),
    "window_attention": (torch.float32, torch.bfloat16),
}
WITHOUT_FEATURES = (
    "assignment",
    "class_loss",
    "loss_sums",
    "focal_dice",
    "point_loss",
    "sample_points",
)
"""Operations without pixel features, for which `ALIGNED` would add nothing."""
MAX_ROUNDING_ERRORS = 8
"""How many rounding errors of the largest value a kernel may add to twice the error of plain
PyTorch."""
MAX_DIFFERING = 1e-3
"""The fraction of a map's pixels that may differ, because their best scores are almost equal."""


@dataclass(frozen=True)
class Row:
    """The result of one problem."""

    operation: str
    form: str
    dtype: str
    served: str
    """``native``, ``pytorch``, or why the problem runs in plain PyTorch (the reference)."""
    problem: str
    """What is wrong; empty if nothing is."""
    error: float | None = None
    """The largest error of results and gradients, compared with float64 and divided by the largest
    value."""
    plain_error: float | None = None
    """The error of plain PyTorch in the problem's own precision."""
    ms: float | None = None
    """The median time of a call with its backward pass."""
    plain_ms: float | None = None
    graph_ms: float | None = None
    """The time of the same call in a CUDA graph, which excludes the time of the host."""
    predicted_ms: float | None = None
    """The prediction of `graph_ms` by the cost model, for the GPUs that it supports; see
    `selfcheck.predictions`."""
    peak_mb: float | None = None
    """The peak memory that a call allocates on a GPU."""
    plain_peak_mb: float | None = None


def check(
    device: torch.device, *, quick: bool = False, operation: str | None = None
) -> Iterator[Row]:
    """Check every operation, form and dtype on small problems.

    Unless `quick`, check them also with the sizes of a training step on ADE20K (on a CPU: one image
    and one layer, in float32), and measure time and memory.

    Args:
        device: the device to run on.
        quick: check small problems only.
        operation: check only this operation. None: all.
    """
    on_gpu = device.type == "cuda"
    large = ade20k(images=16, layers=6) if on_gpu else ade20k(images=1, layers=1)
    for sizes in (SMALL, ALIGNED) if quick else (SMALL, ALIGNED, large):
        for problem in problems(device, sizes):
            if operation not in (None, problem.operation):
                continue
            if sizes is ALIGNED:
                if problem.operation in WITHOUT_FEATURES:
                    continue
                problem = replace(problem, form=f"{problem.form}, aligned")
            dtypes = DTYPES.get(problem.operation, DEFAULT_DTYPES)
            for dtype in dtypes if on_gpu or sizes is not large else dtypes[:1]:
                # CUDA graphs, waits and memory statistics are those of the current device.
                current = torch.cuda.device(device) if on_gpu else contextlib.nullcontext()
                with first_use.paused(), current:
                    row = _check(problem, device, dtype, timed=sizes is large)
                yield row


@dataclass(frozen=True)
class Comparison:
    """The native kernels compared with plain PyTorch in the same precision and in float64."""

    ours: list[Tensor]
    error: float
    plain_error: float
    wrong: list[str]


def compared(problem: Problem) -> Comparison:
    """Compute the results and gradients of a problem with both backends.

    Raises:
        BackendError: no native kernel supports the problem. Its cause is a `RuntimeError` if the
            kernel cannot be started.
    """
    with use_backend("native"):
        ours = _results(problem)
    with use_backend("reference"):
        plain = _results(problem)
        truth = _results(problem.to(problem.inputs[0].device, torch.float64))
    error, plain_error = (max(map(_error, some, truth)) for some in (ours, plain))
    return Comparison(ours, error, plain_error, list(_result_problems(ours, plain, truth)))


def _check(problem: Problem, device: torch.device, dtype: torch.dtype, *, timed: bool) -> Row:
    given = problem.to(device, dtype)
    names = (problem.operation, problem.form, str(dtype).removeprefix("torch."))
    before = set(failures)
    try:
        comparison = compared(given)
    except BackendError as error:
        if isinstance(error.__cause__, RuntimeError):  # the kernel cannot be launched
            return Row(*names, "native", str(error.__cause__).splitlines()[0])
        return Row(*names, str(error).partition("cannot run this call: ")[2], problem="")
    except Exception as error:  # any failure of a kernel is a result of the check
        return Row(*names, "native", f"{type(error).__name__}: {str(error).splitlines()[0]}")
    # A kernel failed in the backward pass, which then ran in plain PyTorch.
    for failed in set(failures) - before:
        return Row(*names, "native", failures[failed])
    served = OPERATIONS.get(problem.operation, {}).get(device.type)
    row: dict[str, Any] = {
        "served": "pytorch" if served == "pytorch" else "native",
        "error": comparison.error,
        "plain_error": comparison.plain_error,
    }
    wrong = [*comparison.wrong, *_behaviour_problems(given, comparison.ours)]
    if timed:
        row |= _costs(given, device)
        if device.type == "cuda":
            gpu = torch.cuda.get_device_name(device)
            row["predicted_ms"] = predicted_ms(gpu, *names)
    return Row(*names, problem="; ".join(wrong), **row)


def _results(problem: Problem) -> list[Tensor]:
    """Compute the results of a problem, and the gradients of a fixed weighted sum of them."""
    inputs = [x.detach().clone().requires_grad_(problem.gradient) for x in problem.inputs]
    results = problem.function(*inputs)
    if not problem.gradient:
        return results
    total = sum(
        (
            result
            * torch.linspace(0.5, 1.5, result.numel(), device=result.device)
            .to(result.dtype)
            .view_as(result)
        ).sum()
        for result in results
    )
    return [*(x.detach() for x in results), *torch.autograd.grad(total, inputs)]  # type: ignore[arg-type]


def _error(values: Tensor, truth: Tensor) -> float:
    """Return the largest error divided by the largest value; of maps, the fraction that differs."""
    if truth.numel() == 0:
        return 0.0
    if not values.is_floating_point():
        return float((values != truth).double().mean())
    scale = truth.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((values.double() - truth).abs().max() / scale)


def _result_problems(ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> Iterator[str]:
    for index, (result, same, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        error = _error(result, exact)
        if result.is_floating_point():
            allowed = 2 * _error(same, exact) + MAX_ROUNDING_ERRORS * torch.finfo(result.dtype).eps
        else:
            allowed = MAX_DIFFERING
        if not error <= allowed:  # also if the error is NaN
            yield f"result {index} is off by {error:.1e}, expected at most {allowed:.1e}"


def _behaviour_problems(problem: Problem, first: list[Tensor]) -> Iterator[str]:
    with use_backend("native"):
        again = _results(problem)
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            yield "not repeatable"
        if first[0].device.type == "cuda" and not problem.waits:
            yield from _gpu_problems(problem, first)


def _gpu_problems(problem: Problem, expected: list[Tensor]) -> Iterator[str]:
    """Yield a problem if the call synchronises with the GPU, cannot be captured in a CUDA graph, or
    gives different results in one.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        _results(problem)
    except RuntimeError as error:
        yield f"the host waits for the GPU: {str(error).splitlines()[0]}"
        return
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = _results(problem)
    except RuntimeError as error:
        yield f"it cannot be captured in a CUDA graph: {str(error).splitlines()[0]}"
        return
    graph.replay()
    if not all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)):
        yield "a CUDA graph gives different results"


def _costs(problem: Problem, device: torch.device) -> dict[str, float]:
    costs = {}
    if device.type == "cuda" and not problem.waits:
        with contextlib.suppress(RuntimeError):  # a failed capture has been reported already
            costs["graph_ms"] = 1e3 * _seconds_in_a_graph(problem)
    for backend, prefix in (("native", ""), ("reference", "plain_")):
        with use_backend(backend):  # type: ignore[arg-type]
            costs[f"{prefix}ms"] = 1e3 * _seconds(lambda: _results(problem))
            if device.type == "cuda":
                costs[f"{prefix}peak_mb"] = _peak(lambda: _results(problem)) / 1e6
    return costs


def _seconds(call: Callable[[], object]) -> float:
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.2).median


def _seconds_in_a_graph(problem: Problem) -> float:
    graph = torch.cuda.CUDAGraph()
    with use_backend("native"), torch.cuda.graph(graph):
        _results(problem)
    return _seconds(graph.replay)


def _peak(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
