"""Checks and times the providers of a case, and says what explains the times."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Provider
from harness.memory import peak_bytes, saved_bytes
from harness.timing import Times, count_launches, floor_seconds, interleaved
from torch import Tensor


@dataclass
class Outcome:
    """What became of one provider: times with what explains them, or why there are none."""

    times: Times | None = None
    info: dict[str, Any] | None = None
    wrong: str = ""
    missing: str = ""


def measure(
    comparison: Comparison, names: Sequence[str], device: torch.device, seconds: float
) -> dict[str, Outcome]:
    """Builds the providers, checks each against the truth and times those that are right."""
    outcomes, providers = checked(comparison, names)
    if not providers:
        return outcomes
    times = interleaved(providers, device, seconds)
    for name, provider in providers.items():
        outcomes[name] = Outcome(times[name], _explain(comparison, name, provider, times, device))
    return outcomes


def checked(
    comparison: Comparison, names: Sequence[str]
) -> tuple[dict[str, Outcome], dict[str, Provider]]:
    """What is wrong or not installed, and the providers whose results are right."""
    truth = comparison.truth()
    outcomes: dict[str, Outcome] = {}
    right: dict[str, Provider] = {}
    for name in names:
        try:
            provider = comparison.providers[name]()
        except ModuleNotFoundError as error:
            outcomes[name] = Outcome(missing=f"{error.name} is not installed")
            continue
        error = comparison.error(provider(), truth)
        if error <= comparison.tolerance:
            right[name] = provider
        else:
            outcomes[name] = Outcome(
                wrong=f"off by {error:.2g}, at most {comparison.tolerance:.2g} is right"
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
    keeps_pages = device.type == "cpu" and "GLIBC_TUNABLES" in os.environ
    # Counting on a CPU looks at operators one by one, which ends compilation.
    countable = device.type == "cuda" or name != COMPILE
    launches, waits = count_launches(device, provider) if countable else (None, None)
    return {
        "p20_ms": 1e3 * total[len(total) // 5],
        "p50_ms": 1e3 * own.median,
        "p80_ms": 1e3 * total[-1 - len(total) // 5],
        "forward_ms": 1e3 * statistics.median(own.forward),
        "backward_ms": 1e3 * statistics.median(own.backward),
        "graph_ms": None if own.graph is None else 1e3 * own.graph,
        "times_faster_than_reference": _ratio(times, REFERENCE, own),
        "times_faster_than_compile": _ratio(times, COMPILE, own),
        "times_faster_than_best_peer": _ratio(times, _best_peer(times), own),
        "gb_per_s": comparison.floor.bytes / own.median / 1e9,
        "tflop_per_s": comparison.floor.flops / own.median / 1e12,
        "floor_ms": 1e3 * floor,
        "times_floor": own.median / floor if floor > 0 else None,
        "peak_mb": None if keeps_pages else peak_bytes(device, provider) / 1e6,
        "saved_mb": _saved(comparison, provider.forward) if provider.backward else None,
        "launches": launches,
        "host_waits": waits,
    }


def _ratio(times: dict[str, Times], other: str | None, own: Times) -> float | None:
    return times[other].median / own.median if other in times else None


def _best_peer(times: dict[str, Times]) -> str | None:
    peers = [name for name in times if name not in (NATIVE, REFERENCE, COMPILE)]
    return min(peers, key=lambda name: times[name].median, default=None)


def _saved(comparison: Comparison, forward: Callable[[], Any]) -> float:
    return saved_bytes([x for x in comparison.given if isinstance(x, Tensor)], forward) / 1e6
