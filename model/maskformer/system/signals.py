"""Signals as requests that training handles between its steps.

SIGINT (Ctrl-C), SIGTERM (job schedulers), SIGHUP (a closed terminal) and SIGUSR1 (Slurm's
`--signal`) request to save and stop, SIGUSR2 to save and continue.
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

REPEATABLE = (signal.SIGINT, signal.SIGTERM)
"""The signals that end the process at once if they come a second time."""
SIGNALS = (*REPEATABLE, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SAME_REQUEST_SECONDS = 1.0
"""Two signals within this time are the same request: `timeout`, `torchrun` and others signal both
the process and its group.
"""


class Interrupted(BaseException):
    """A stop signal came inside `Signals.interruptible`. It is not an `Exception`, so that no
    `except Exception` catches it.
    """


class Signals:
    """A context manager that records signals instead of letting them end the process. It has no
    effect outside of the main thread, in which Python handles signals.

    A second SIGINT or SIGTERM ends the process at once. This does not include the first SIGTERM
    that a scheduler sends some time after SIGUSR1, because a save may be in progress.

    Args:
        verbose: print on standard error what the first stop signal does.

    Attributes:
        stop: the number of the signal that requested to stop; 0 if there was none.
        save: whether a signal requested to save.
    """

    def __init__(self, *, verbose: bool = True) -> None:
        self.stop = 0
        self.save = False
        self._verbose = verbose
        self._first_request = math.inf
        self._interruptible = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # `nohup` ignores SIGHUP, so that the command survives the end of the terminal.
            if number is signal.SIGHUP and handler is signal.SIG_IGN:
                continue
            # None stands for a handler installed from C, which could not be restored.
            if handler is not None:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def interruptible(self, allowed: bool = True) -> Iterator[None]:
        """Make stop signals raise `Interrupted` at once, for waits in which nothing can be lost."""
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
        if number in REPEATABLE:
            now = time.monotonic()
            if now - self._first_request > SAME_REQUEST_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._first_request = min(self._first_request, now)
        if not self.stop:
            self.stop = number
            if self._verbose:
                # Do not use the console: the signal may have come in the middle of a line.
                with suppress(OSError):
                    os.write(2, b"\nstopping after this step (once more to stop at once)\n")
        if self._interruptible:
            self._interruptible = False  # raise only once, even if the signal comes twice
            raise Interrupted


def silence_lost_output() -> None:
    """Redirect output whose terminal or pipe is closed to /dev/null, so that the next line does not
    end the program.
    """
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
