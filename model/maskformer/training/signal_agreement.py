"""Signals in one process or several that train together: all stop and save at the same step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from maskformer.system.signals import Signals

AGREE_STEPS, AGREE_SECONDS = 10, 2.0
"""At most so far apart, processes that train together ask each other whether a signal came."""


class SignalAgreement:
    """While entered, notes signals (see `Signals`) and shares them with the other processes.

    Args:
        signals: what came to this process, or was agreed on.
        step: the step at which training starts.
    """

    def __init__(self, signals: Signals, accelerator: Accelerator, step: int = 0) -> None:
        self._accelerator = accelerator
        self.signals = signals
        self._next_step = 0
        self._agreed = (step, time.monotonic())

    def __enter__(self) -> SignalAgreement:
        self.signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.signals.__exit__(*error)

    @contextmanager
    def interruptible(self, allowed: bool = True) -> Iterator[None]:
        """See `Signals.interruptible`."""
        with self.signals.interruptible(allowed):
            yield

    def agree(self, step: int, *, now: bool) -> tuple[bool, bool]:
        """Whether to stop and whether to save.

        Several processes ask each other every few steps or `now`; what came to one of them counts
        for none before that.
        """
        signals = self.signals
        if self._accelerator.num_processes == 1:
            return signals.stop != 0, signals.save
        if not (now or step >= self._next_step):
            return False, False
        before, start = self._agreed
        self._agreed = step, time.monotonic()
        seconds_per_step = (self._agreed[1] - start) / max(step - before, 1)
        wishes = [signals.stop, float(signals.save), seconds_per_step]
        mine = torch.tensor([wishes], device=self._accelerator.device)
        stop, save, slowest = self._accelerator.gather(mine).amax(dim=0).tolist()
        signals.stop, signals.save = int(stop), bool(save)
        self._next_step = step + max(1, min(AGREE_STEPS, int(AGREE_SECONDS / max(slowest, 1e-3))))
        return signals.stop != 0, signals.save
