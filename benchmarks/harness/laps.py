"""How long the parts of a call take, by marks that the call sets at their ends."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from itertools import pairwise

import torch

Mark = tuple[str, float | torch.cuda.Event]


class Laps:
    """The parts of many calls; on a GPU by events on the device, for which nobody waits."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._calls: list[list[Mark]] = []

    def start(self) -> None:
        """A call begins."""
        self._calls.append([])
        self.mark("")

    def mark(self, name: str) -> None:
        """A part ends; those of one name count together."""
        self._calls[-1].append((name, self._now()))

    def clear(self) -> None:
        """Forgets the calls so far, which only warmed up."""
        self._calls.clear()

    def medians_ms(self) -> dict[str, float]:
        """Milliseconds of each part, in the order in which they end."""
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
