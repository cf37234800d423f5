"""Checks and times the providers of a case, and collects figures that explain the times."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness.comparison import (
    COMPILE,
    NATIVE,
    REFERENCE,
    Comparison,
    Provider,
    is_compiled,
    is_ours,
)
from harness.memory import peak_bytes, saved_bytes
from harness.timing import SLOW_CALL, Times, count_launches, floor_seconds, interleaved
from torch import Tensor


@dataclass
class Outcome:
    """The outcome for one provider: its times and the figures that explain them, or the reason why
    there are none, in `wrong` or `missing`.
    """

    times: Times | None = None
    info: dict[str, Any] | None = None
    wrong: str = ""
    missing: str = ""


@dataclass
class Right:
    """A provider whose result is correct, and memory and launches of its first call, if known."""

    provider: Provider
    first: dict[str, Any] | None = None


def measure(
    comparison: Comparison, names: Sequence[str], device: torch.device, seconds: float
) -> dict[str, Outcome]:
    """Build the providers, check each against the truth and time those that are correct."""
    outcomes, right = checked(comparison, names, device)
    if not right:
        return outcomes
    for found in right.values():
        if found.provider.laps is not None:
            found.provider.laps.clear()
    times = interleaved({name: found.provider for name, found in right.items()}, device, seconds)
    explained = {
        name: _explain(comparison, name, found.provider, times, device)
        for name, found in right.items()
    }
    for name, found in right.items():
        # Reuse the figures of the first call only if another call would be too slow: the first one
        # may have imported modules, which is noticeable unless the call itself is large.
        seen = found.first if times[name].median > SLOW_CALL else None
        if seen is None:
            _, seen = _observed(comparison, found.provider, device, compiled=is_compiled(name))
        outcomes[name] = Outcome(times[name], explained[name] | seen)
    return outcomes


def checked(
    comparison: Comparison, names: Sequence[str], device: torch.device
) -> tuple[dict[str, Outcome], dict[str, Right]]:
    """Check every provider, which also warms it up.

    Returns the outcomes of those that are wrong or not installed, and the correct providers.
    """
    truth = comparison.truth()
    outcomes: dict[str, Outcome] = {}
    right: dict[str, Right] = {}
    for name in names:
        try:
            provider = comparison.providers[name]()
        except ModuleNotFoundError as error:
            outcomes[name] = Outcome(missing=f"{error.name} is not installed")
            continue
        # `native` is checked exactly as it is called, without instrumentation. Compiled providers
        # are not observed either: the observation would disable compilation.
        if device.type == "cpu" and name != NATIVE and not is_compiled(name):
            result, first = _observed(comparison, provider, device, compiled=False)
        else:
            result, first = provider(), None
        error = comparison.error(result, truth)
        tolerance = comparison.tolerance if provider.tolerance is None else provider.tolerance
        if error <= tolerance:
            right[name] = Right(provider, first)
        else:
            outcomes[name] = Outcome(
                wrong=f"off by {error:.2g}, above the tolerance of {tolerance:.2g}"
            )
    return outcomes, right


def _explain(
    comparison: Comparison,
    name: str,
    provider: Provider,
    times: dict[str, Times],
    device: torch.device,
) -> dict[str, Any]:
    own = times[name]
    total = sorted(own.total)
    floor = floor_seconds(comparison.floor, device)
    images = comparison.images
    return {
        "p20_ms": 1e3 * total[len(total) // 5],
        "p50_ms": 1e3 * own.median,
        "p80_ms": 1e3 * total[-1 - len(total) // 5],
        "forward_ms": 1e3 * statistics.median(own.forward),
        "backward_ms": 1e3 * statistics.median(own.backward),
        "cpu_ms": 1e3 * statistics.median(own.cpu) if device.type == "cpu" else None,
        "parts_ms": None if provider.laps is None else provider.laps.medians_ms(),
        "images_per_s": None if images is None else images / own.median,
        "graph_ms": None if own.graph is None else 1e3 * own.graph,
        "times_faster_than_reference": _ratio(times, REFERENCE, own),
        "times_faster_than_compile": _ratio(times, COMPILE, own),
        "times_faster_than_best_peer": _ratio(times, _best_peer(times), own),
        "gb_per_s": comparison.floor.bytes / own.median / 1e9,
        "tflop_per_s": comparison.floor.flops / own.median / 1e12,
        "floor_ms": 1e3 * floor,
        "times_floor": own.median / floor if floor > 0 else None,
    }


def _observed(
    comparison: Comparison, provider: Provider, device: torch.device, compiled: bool
) -> tuple[list[Tensor], dict[str, Any]]:
    """The result of one call, with its peak memory, saved memory, kernel launches and host waits.

    On a GPU, the launches are counted in a second call under the profiler.
    """
    result: list[Tensor] = []
    peak: int = 0
    saved: int | None = None

    def forward() -> Any:
        nonlocal saved
        values, saved = saved_bytes(comparison.given, provider.forward)
        return values

    watched = replace(provider, forward=forward) if provider.backward else provider

    def call() -> None:
        nonlocal result, peak
        result, peak = peak_bytes(device, watched)

    launches: int | None = None
    waits: int | None = None
    if device.type == "cuda":
        call()
        launches, waits = count_launches(device, provider.run)
    elif compiled:  # counting intercepts every operator, which would disable compilation
        call()
    else:
        launches, waits = count_launches(device, call)
    unseen = device.type == "cpu" and ("GLIBC_TUNABLES" in os.environ or provider.in_workers)
    return result, {
        "peak_mb": None if unseen else peak / 1e6,
        "saved_mb": None if saved is None else saved / 1e6,
        "launches": launches,
        "host_waits": waits,
    }


def _ratio(times: dict[str, Times], other: str | None, own: Times) -> float | None:
    return times[other].median / own.median if other in times else None


def _best_peer(times: dict[str, Times]) -> str | None:
    peers = [name for name in times if not (is_ours(name) or name in (REFERENCE, COMPILE))]
    return min(peers, key=lambda name: times[name].median, default=None)
