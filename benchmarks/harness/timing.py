"""Interleaved timing of several providers on the same inputs, and what the machine can do."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Row:
    """One measured figure. `ms` is the median; `ratio` is against the baseline of the case."""

    operation: str
    case: str
    provider: str
    device: str
    ms: float
    p20: float
    p80: float
    ratio: float
    rounds: int


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    providers: dict[str, Callable[[], object]],
    device: torch.device,
    seconds: float = 2.0,
    least: int = 7,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Milliseconds of many calls of each provider, in turns, after a warm-up.

    The number of rounds is what fits into `seconds`, at least `least`.
    """
    for provider in providers.values():
        for _ in range(warm_up):
            provider()
    _synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in providers}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, provider in providers.items():
            start = time.perf_counter()
            provider()
            _synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def rows(
    operation: str,
    case: str,
    device: torch.device,
    times: dict[str, list[float]],
    baseline: str,
) -> list[Row]:
    """Medians and spread of each provider, with the speed-up over the baseline."""
    base = statistics.median(times[baseline])
    result = []
    for provider, values in times.items():
        ordered = sorted(values)
        median = statistics.median(values)
        result.append(
            Row(
                operation,
                case,
                provider,
                str(device),
                median,
                ordered[len(ordered) // 5],
                ordered[-1 - len(ordered) // 5],
                base / median,
                len(values),
            )
        )
    return result


@functools.cache
def machine_rates(device: torch.device) -> tuple[float, float]:
    """Floating-point operations and bytes a second that PyTorch reaches here, in float32.

    The best of two libraries: on some processors one of them is far from what they can do.
    """
    a = torch.randn(2048, 2048, device=device)
    image, weight = (
        torch.randn(1, 512, 64, 64, device=device),
        torch.randn(512, 512, 1, 1).to(device),
    )
    source = torch.randn(1 << 26, device=device)
    copy = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {
        "matmul": lambda: a @ a,
        "convolution": lambda: torch.nn.functional.conv2d(image, weight),
        "copy": lambda: copy.copy_(source),
    }
    times = {name: min(ms) / 1e3 for name, ms in interleaved(calls, device, 1.0).items()}
    flops = max(2 * 2048**3 / times["matmul"], 2 * 512**2 * 64**2 / times["convolution"])
    return flops, 2 * 4 * source.numel() / times["copy"]


class _Counter(TorchDispatchMode):
    """Counts the operators that start a kernel, those that wait for the device apart."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.syncs += 1
        elif not (func.is_view or name in _NO_KERNEL):
            self.launches += 1
        return result


_NO_KERNEL = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias"})


def count_launches(device: torch.device, call: Callable[[], object]) -> tuple[int, int]:
    """Kernels that a call starts, and how often the host waits for the device (−1: not known).

    On a CPU: operators that compute, as each is at least one kernel on a GPU.
    """
    if device.type != "cuda":
        with _Counter() as counter:
            call()
        return counter.launches, -1
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        call()
        torch.cuda.synchronize(device)
    names = [event.name for event in profiler.events()]
    launches = sum("Launch" in name and name.startswith("cu") for name in names)
    waits = sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for name in names)
    return launches, waits - 1
