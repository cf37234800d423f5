"""Signals as wishes that training reads between its steps.

SIGINT (Ctrl-C), SIGTERM (job schedulers), SIGHUP (a closed terminal) and SIGUSR1 (Slurm's
`--signal`) ask to save and stop, SIGUSR2 to save and go on.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INSISTENT = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (*INSISTENT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SAME_WISH_SECONDS = 1.0
"""`timeout`, `torchrun` and others signal the process and its group: one wish that comes twice."""


class Interrupted(BaseException):
    """A stop signal came inside `Signals.interruptible`; no `except Exception` may swallow it."""


class Signals:
    """While entered, notes signals instead of ending the process; outside of the main thread, to
    which they come, it does nothing.

    A second SIGINT or SIGTERM does what it would do without us: it ends the process at once. Not so
    the one that a scheduler sends some time after SIGUSR1: the save may be on its way.

    Args:
        verbose: tell on standard error what the first stop signal leads to.

    Attributes:
        stop: number of the signal that asked to stop; 0 if none did.
        save: whether one asked to save.
    """

    def __init__(self, *, verbose: bool = True) -> None:
        self.stop = 0
        self.save = False
        self._verbose = verbose
        self._insisted = math.inf
        self._interruptible = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # `nohup` ignores SIGHUP for its command, which is to outlive the terminal.
            if number is signal.SIGHUP and handler is signal.SIG_IGN:
                continue
            # None: of a program in C that runs Python; it could not be put back.
            if handler is not None:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def interruptible(self, allowed: bool = True) -> Iterator[None]:
        """Stop signals raise `Interrupted` at once, for waits in which nothing can be lost."""
        try:
            self._interruptible = allowed
            if allowed and self.stop:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_lost_output()
        if number == signal.SIGUSR2:
            self.save = True
            return
        if number in INSISTENT:
            now = time.monotonic()
            if now - self._insisted > SAME_WISH_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._insisted = min(self._insisted, now)
        if not self.stop:
            self.stop = number
            if self._verbose:
                # Not through the console: the signal may have come amid one of its lines.
                with suppress(OSError):
                    os.write(2, b"\nstopping after this step (once more to stop at once)\n")
        if self._interruptible:
            self._interruptible = False  # one wish may come twice, and what follows is to be done
            raise Interrupted


def silence_lost_output() -> None:
    """Leads output whose terminal or pipe is gone to /dev/null: the next line must not end work."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
