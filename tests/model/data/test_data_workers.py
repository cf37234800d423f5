"""Workers that find no shared memory, die or stall: what the training process is told."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.repository import TESTS

from maskformer.config.schema import SemanticAugmentation, ShapesConfig
from maskformer.data import EvalBatch, EvalLoader, Sample, Shapes, TrainLoader, TrainTransform
from maskformer.data import workers as data_workers
from maskformer.errors import WorkerError

SHAPES = Shapes(ShapesConfig(image_size=(32, 40), train_images=13), "train")
TRANSFORM = TrainTransform(SemanticAugmentation(short_sides=(32,), crop=(32, 32)))


def collate(samples: Sequence[Sample]) -> EvalBatch:
    """What the evaluation does; imported late, for the programs that only import this file."""
    from maskformer import ImageProcessor

    return ImageProcessor(None, None).batch(samples)


class Failing:
    """A data set that does something to the process which reads its fourth image."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail
        self.info = SHAPES.info
        self.num_images = 13

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            self.fail()
        return SHAPES[index]


def read(fail: Callable[[], None], workers: int = 2) -> None:
    for _ in EvalLoader(Failing(fail), collate, workers=workers):
        pass


def no_room(*_: object) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device")


def test_batches_that_find_no_shared_memory_come_through_pipes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = list(EvalLoader(SHAPES, collate, batch_size=4))
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    said: list[str] = []
    loader = EvalLoader(SHAPES, collate, batch_size=4, workers=2, warn=said.append)
    batches = list(loader)
    (warning,) = said
    assert "--shm-size" in warning
    assert "train.workers" in warning
    assert len(batches) == len(wanted)
    for batch, expected in zip(batches, wanted, strict=True):
        assert torch.equal(batch.pixel_values, expected.pixel_values)
        assert [sample.name for sample in batch.samples] == [s.name for s in expected.samples]
        assert torch.equal(batch.samples[0].segments, expected.samples[0].segments)


def test_training_batches_through_pipes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = next(iter(TrainLoader(SHAPES, TRANSFORM, 4, seed=0)))
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    with pytest.warns(UserWarning, match="too small"):
        batch = next(iter(TrainLoader(SHAPES, TRANSFORM, 4, seed=0, workers=1)))
    assert torch.equal(batch.pixel_values, wanted.pixel_values)
    assert torch.equal(batch.targets.label_map, wanted.targets.label_map)
    assert torch.equal(batch.targets.labels, wanted.targets.labels)


def test_shared_memory_is_used_where_there_is_room() -> None:
    batch = next(iter(TrainLoader(SHAPES, TRANSFORM, 4, seed=0, workers=1)))
    assert batch.pixel_values.is_shared()
    assert batch.targets.label_map.is_shared()


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "out of memory"), (signal.SIGBUS, "--shm-size"), (signal.SIGSEGV, "")],
)
def test_a_killed_worker_is_named_with_the_signal(number: signal.Signals, reason: str) -> None:
    def fail() -> None:
        os.kill(os.getpid(), number)

    started = time.monotonic()
    text = (
        rf"worker . of 2, .*\(process \d+\), was killed by {number.name}.*{reason}.*train.workers"
    )
    with pytest.raises(WorkerError, match=text):
        read(fail)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_ends_is_named(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(data_workers, "POLL_SECONDS", 1)
    monkeypatch.setattr("maskformer.data.loaders.POLL_SECONDS", 1)
    with pytest.raises(WorkerError, match=rf"worker . of 2, .* ended with exit code {code}"):
        read(lambda: os._exit(code))


def test_a_worker_that_ends_while_it_hands_over_a_batch_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reset(*_: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("multiprocessing.resource_sharer._resource_sharer.get_connection", reset)
    with pytest.raises(WorkerError, match="ended with exit code 0"):
        read(lambda: os._exit(0))


def _children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def leave_half_a_message() -> None:
    """What a worker that is killed while it writes leaves: a length, and less than that."""
    frame = sys._getframe()
    while "data_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    os.write(frame.f_locals["data_queue"]._writer.fileno(), struct.pack("!i", 10**6) + b"little")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_that_waits_for_the_rest_of_a_message_is_freed() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match="SIGKILL"):
        read(leave_half_a_message, workers=1)
    assert time.monotonic() - started < 5


def test_a_handler_of_another_loader_says_nothing_of_these_workers() -> None:
    """PyTorch's, which stays once a loader of the user's own had workers, raises anywhere."""
    from torch.utils.data._utils import signal_handling

    before = signal.getsignal(signal.SIGCHLD)
    signal_handling._SIGCHLD_handler_set = False
    signal_handling._set_SIGCHLD_handler()
    try:
        for _ in range(3):
            with pytest.raises(WorkerError, match="SIGKILL"):
                read(lambda: os.kill(os.getpid(), signal.SIGKILL))
            time.sleep(0.2)
        batches = iter(EvalLoader(SHAPES, collate, workers=2))
        next(batches)
        worker, _ = _children()
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.5)
        with pytest.raises(WorkerError, match="SIGKILL"):
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, before)
        signal_handling._SIGCHLD_handler_set = False


def test_a_handler_that_c_code_installed_ends_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python knows it as None, and cannot put it back."""
    monkeypatch.setattr(data_workers, "_sigchld_handler", lambda: None)
    assert list(EvalLoader(SHAPES, collate, workers=1))


def test_workers_that_stall_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_workers, "PATIENCE_POLLS", 2)
    monkeypatch.setattr(data_workers, "POLL_SECONDS", 1)
    monkeypatch.setattr("maskformer.data.loaders.POLL_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(
        WorkerError, match=r"no batch came for 2 s from 2 workers.*train\.workers=0"
    ):
        read(lambda: time.sleep(1000))
    assert time.monotonic() - started < 8


def test_workers_that_cannot_start_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(WorkerError, match=r"2 worker processes cannot be started: .*temporarily"):
        read(lambda: None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BlockingIOError(11, "Resource temporarily unavailable"), "cannot be started: .*tempora"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_workers_end_if_the_next_one_cannot_start(error: BaseException, said: str) -> None:
    """They ignore SIGTERM, so the program waited for them forever."""
    program = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(TESTS)]!r}
from test_data_workers import SHAPES
from maskformer.data import EvalLoader
fork, started = os.fork, []
def fork_once():
    if started:
        raise {error!r}
    started.append(1)
    return fork()
os.fork = fork_once
for batch in EvalLoader(SHAPES, tuple, workers=2):
    pass
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ended.returncode
    assert re.search(said, ended.stderr.decode())
    assert b"Exception ignored" not in ended.stderr


def test_a_programming_error_in_a_worker_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        read(lambda: 1 // 0)  # type: ignore[arg-type, return-value]


def test_no_handler_is_left_that_raises_anywhere() -> None:
    """PyTorch's raises in whatever the program is doing when a worker dies, even a save."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(EvalLoader(SHAPES, collate, workers=1))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_all_workers_end_with_the_iteration() -> None:
    batches = iter(EvalLoader(SHAPES, collate, workers=2))
    next(batches)
    pids = _children()
    assert len(pids) == 2
    del batches
    deadline = time.monotonic() + 8
    while _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(_children()) & set(pids)


def test_an_error_does_not_hang_at_the_end_of_the_program() -> None:
    """Its traceback keeps the iteration, and so the workers, to the end."""
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(TESTS)]!r}
from test_data_workers import SHAPES
from maskformer.data import EvalLoader
for batch in EvalLoader(SHAPES, tuple, workers=1):
    raise RuntimeError("while the workers are busy")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ended.returncode == 1
    assert b"while the workers are busy" in ended.stderr
