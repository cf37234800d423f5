"""Times the parts of a call: the call sets a mark at the end of each part."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from itertools import pairwise

import torch

Mark = tuple[str, float | torch.cuda.Event]


class Laps:
    """Times of the parts of many calls.

    On a GPU, marks are CUDA events, so that marking does not synchronise with the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._calls: list[list[Mark]] = []

    def start(self) -> None:
        """Begin a call."""
        self._calls.append([])
        self.mark("")

    def mark(self, name: str) -> None:
        """End a part; parts of one call with the same name are added up."""
        self._calls[-1].append((name, self._now()))

    def clear(self) -> None:
        """Discard all calls so far, which were only warm-up."""
        self._calls.clear()

    def medians_ms(self) -> dict[str, float]:
        """Median milliseconds of each part over all calls, in the order in which the parts end."""
        calls = [_parts(marks) for marks in self._calls]
        names = dict.fromkeys(name for parts in calls for name in parts)
        return {name: statistics.median(parts[name] for parts in calls) for name in names}

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _parts(marks: list[Mark]) -> Counter[str]:
    parts: Counter[str] = Counter()
    for (_, begin), (name, end) in pairwise(marks):
        if isinstance(begin, float):
            parts[name] += 1e3 * (end - begin)
        else:
            parts[name] += begin.elapsed_time(end)
    return parts
