from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskformer.system.signals import SIGNALS, Interrupted, Signals

PROGRAM = """
import signal, sys, time
from maskformer.system.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    for _ in range(400):
        time.sleep(0.05)
    print("not ended")
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_signals_that_ask_to_stop(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    with Signals() as signals:
        signal.raise_signal(number)
        assert signals.stop == number
        assert not signals.save
    assert "stopping after this step" in capfd.readouterr().err
    assert {one: signal.getsignal(one) for one in SIGNALS} == before


def test_a_signal_that_asks_to_save() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGUSR2)
        assert signals.save
        assert not signals.stop


def test_one_wish_that_comes_twice_is_one() -> None:
    """`timeout` and `torchrun` signal the process and then its group."""
    with Signals(verbose=False) as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.raise_signal(number)
        assert signals.stop == signal.SIGTERM


def test_a_wait_can_be_interrupted() -> None:
    with Signals(verbose=False) as signals:
        with pytest.raises(Interrupted), signals.interruptible():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), signals.interruptible():
            pass
        signal.raise_signal(signal.SIGHUP)  # outside, it is only noted
        with signals.interruptible(False):
            signal.raise_signal(signal.SIGHUP)


def test_what_follows_an_interruption_is_not_interrupted() -> None:
    done: list[str] = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("what follows")

    with Signals(verbose=False) as signals, pytest.raises(Interrupted), signals.interruptible():
        work()
    assert done


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_signals_stay_as_they_are() -> None:
    before = {one: signal.getsignal(one) for one in SIGNALS}

    def handlers_inside() -> dict[signal.Signals, object]:
        with Signals():
            return {one: signal.getsignal(one) for one in SIGNALS}

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers_inside).result() == before


def test_a_handler_that_c_code_installed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python knows it as None, and could not put it back."""
    known, set_to = signal.getsignal, []
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGUSR1 else known(n))
    change = signal.signal
    monkeypatch.setattr(signal, "signal", lambda n, h: set_to.append(n) or change(n, h))
    with Signals():
        pass
    assert signal.SIGTERM in set_to
    assert signal.SIGUSR1 not in set_to


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), -signal.SIGINT),
        ((signal.SIGINT, signal.SIGTERM), -signal.SIGTERM),
        ((signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM), -signal.SIGTERM),
    ],
)
def test_the_second_one_ends_the_process_at_once(
    numbers: tuple[signal.Signals, ...], code: int
) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for number in numbers:
            assert process.poll() is None
            process.send_signal(number)
            time.sleep(1.1)
        assert process.wait(5) == code


TALKATIVE = """
import os, sys, time
from maskformer.system.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    while not signals.stop:
        time.sleep(0.01)
    for stream in (sys.stdout, sys.stderr):
        print("still here", file=stream, flush=True)
sys.exit(7)
"""


def test_output_to_a_closed_terminal_ends_nothing() -> None:
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", TALKATIVE], preexec_fn=lambda: os.login_tty(terminal)
    ) as process:
        os.close(terminal)
        assert b"ready" in os.read(ours, 100)
        os.close(ours)  # the system sends SIGHUP
        try:
            assert process.wait(10) == 7
        finally:
            process.kill()
