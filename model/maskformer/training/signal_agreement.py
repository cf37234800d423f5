"""Signals in distributed training: all processes stop and save at the same step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from maskformer.system.signals import Signals

AGREE_STEPS, AGREE_SECONDS = 10, 2.0
"""The longest interval at which the processes exchange whether a signal came."""


class SignalAgreement:
    """A context manager that records signals (see `Signals`) and exchanges them between processes.

    Args:
        signals: the signals of this process; `agree` replaces them by those of all processes.
        accelerator: gives the processes.
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
        """Return whether to stop and whether to save.

        Several processes exchange their signals every few steps, or if `now` is True. Before that,
        a signal to one of them has no effect on any.
        """
        signals = self.signals
        if self._accelerator.num_processes == 1:
            return signals.stop != 0, signals.save
        if not (now or step >= self._next_step):
            return False, False
        before, start = self._agreed
        self._agreed = step, time.monotonic()
        seconds_per_step = (self._agreed[1] - start) / max(step - before, 1)
        values = [signals.stop, float(signals.save), seconds_per_step]
        mine = torch.tensor([values], device=self._accelerator.device)
        stop, save, slowest = self._accelerator.gather(mine).amax(dim=0).tolist()
        signals.stop, signals.save = int(stop), bool(save)
        self._next_step = step + max(1, min(AGREE_STEPS, int(AGREE_SECONDS / max(slowest, 1e-3))))
        return signals.stop != 0, signals.save
