"""Times several providers interleaved, and measures the machine's peak rates."""

from __future__ import annotations

import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from harness.comparison import Floor, Provider
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

MIN_ROUNDS = 3
PATIENCE = 90.0
"""Seconds spent on a case after which a single round is enough."""
SLOW_CALL = 2.0
"""Seconds above which a call is not repeated just to measure its memory and launches."""
MAX_CALLS_PER_ROUND = 10
"""Calls per round of a fast provider, while the slowest one is called once."""
MAX_ROUNDS = 100
GRAPH_REPLAYS = 20


@dataclass
class Times:
    """Seconds per call, for many calls; `backward` holds zeros if there is no backward pass."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU time per call, summed over all threads; background load hardly changes it."""
    graph: float | None = None
    """Median seconds of a CUDA graph replay; None if the call cannot be captured."""

    def add(self, forward: float, backward: float) -> None:
        self.forward.append(forward)
        self.backward.append(backward)

    @property
    def total(self) -> list[float]:
        return [a + b for a, b in zip(self.forward, self.backward, strict=True)]

    @property
    def median(self) -> float:
        return statistics.median(self.total)


def interleaved(
    providers: Mapping[str, Provider], device: torch.device, seconds: float
) -> dict[str, Times]:
    """Time all providers round by round for about `seconds`, so that drift affects them alike.

    The providers must be warm, that is, called before.
    """
    clock = _cuda_call if device.type == "cuda" else _cpu_call
    times = {name: Times() for name in providers}
    calls = dict.fromkeys(providers, 1)
    start = time.perf_counter()
    rounds = 0

    def enough() -> bool:
        spent = time.perf_counter() - start
        least = MIN_ROUNDS if spent < PATIENCE else 1
        return rounds >= least and (spent >= seconds or rounds >= MAX_ROUNDS)

    while not enough():
        for name, provider in providers.items():
            for _ in range(calls[name]):
                begin = time.process_time()
                times[name].add(*clock(provider))
                times[name].cpu.append(time.process_time() - begin)
        if rounds == 0:
            longest = max(own.median for own in times.values())
            calls = {
                name: max(
                    1, min(MAX_CALLS_PER_ROUND, math.floor(0.25 * longest / max(own.median, 1e-9)))
                )
                for name, own in times.items()
            }
        rounds += 1
    if device.type == "cuda":
        for name, provider in providers.items():
            if provider.laps is None:  # lap events cannot be timed inside a graph
                times[name].graph = graph_seconds(provider)
    return times


def _cpu_call(provider: Provider) -> tuple[float, float]:
    start = time.perf_counter()
    values = provider.forward()
    middle = time.perf_counter()
    if provider.backward is None:
        return middle - start, 0.0
    provider.backward(values)
    return middle - start, time.perf_counter() - middle


def _cuda_call(provider: Provider) -> tuple[float, float]:
    """Seconds of forward and backward by CUDA events, after flushing the L2 cache with zeros."""
    _flush(torch.cuda.current_device())
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    events[0].record()
    values = provider.forward()
    events[1].record()
    if provider.backward is not None:
        provider.backward(values)
    events[2].record()
    torch.cuda.synchronize()
    forward, backward = (a.elapsed_time(b) / 1e3 for a, b in pairwise(events))
    return forward, backward if provider.backward is not None else 0.0


@functools.cache
def _cache_filler(device: int) -> torch.Tensor:
    return torch.empty(1 << 28, dtype=torch.int8, device=device)


def _flush(device: int) -> None:
    _cache_filler(device).zero_()


def graph_seconds(provider: Provider) -> float | None:
    """Median seconds of replaying the call as a CUDA graph, with a warm cache.

    None if the call cannot be captured because it waits for the device or for another reason.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            provider.run()
            # Detect calls that synchronise before capturing them: a failed capture would leave the
            # random number generator unusable.
            torch.cuda.set_sync_debug_mode("error")
            provider.run()
    except RuntimeError:
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            provider.run()
    except RuntimeError as error:
        torch.cuda.synchronize()
        warnings.warn(f"CUDA graph capture failed: {str(error).splitlines()[0]}", stacklevel=2)
        return None
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(GRAPH_REPLAYS):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


@functools.cache
def machine_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Peak FLOP/s in a dtype and bytes/s that PyTorch reaches on this machine.

    FLOP/s are the better of a matrix product and a 1x1 convolution, which use different libraries:
    on some processors one of the two is far from the hardware's peak.
    """
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    image = torch.randn(1, 512, 64, 64, device=device, dtype=dtype)
    weight = torch.randn(512, 512, 1, 1, device=device, dtype=dtype)
    source = torch.randn(1 << 26, device=device)
    copy = torch.empty_like(source)
    calls = {
        "matmul": Provider(lambda: a @ a),
        "convolution": Provider(lambda: torch.nn.functional.conv2d(image, weight)),
        "copy": Provider(lambda: copy.copy_(source)),
    }
    for call in calls.values():
        call.forward()
    best = {name: min(times.forward) for name, times in interleaved(calls, device, 1.0).items()}
    flops = max(2 * 2048**3 / best["matmul"], 2 * 512**2 * 64**2 / best["convolution"])
    return flops, 2 * 4 * source.numel() / best["copy"]


def floor_seconds(floor: Floor, device: torch.device) -> float:
    """The larger of a floor's compute and memory time at this machine's peak rates."""
    flops, bandwidth = machine_rates(device, floor.dtype)
    return max(floor.flops / flops, floor.bytes / bandwidth)


class _Counter(TorchDispatchMode):
    """Counts the operators that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in _NO_KERNEL):
            self.launches += 1
        return result


_NO_KERNEL = frozenset(
    {
        *("_local_scalar_dense", "alias", "detach"),
        *("empty", "empty_like", "empty_strided", "new_empty"),
    }
)


def count_launches(device: torch.device, call: Callable[[], object]) -> tuple[int, int | None]:
    """Kernels that a call launches, and how often the host waits for the device (None: unknown).

    On a CPU, the operators that compute something are counted instead: on a GPU, each of them would
    be at least one kernel.
    """
    if device.type != "cuda":
        with _Counter() as counter:
            call()
        return counter.launches, None
    launches, waits = _launches_and_waits(device, call)
    return launches, waits - _launches_and_waits(device, lambda: None)[1]


def _launches_and_waits(device: torch.device, call: Callable[[], object]) -> tuple[int, int]:
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        call()
        torch.cuda.synchronize(device)
    names = [event.name for event in profiler.events()]
    launches = sum("Launch" in name and name.startswith("cu") for name in names)
    waits = sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for name in names)
    return launches, waits
