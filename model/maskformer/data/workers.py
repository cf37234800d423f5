"""Batches from worker processes, handling a full /dev/shm and workers that die or stall."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from traceback import walk_tb
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter

from maskformer.errors import WorkerError

POLL_SECONDS = 5
PATIENCE_POLLS = 120
"""Number of polls without a batch after which workers count as stuck: ten minutes. Polls are
counted instead of measuring time, so that a job does not fail after the scheduler suspended it.
"""
SHARED_MEMORY = "/dev/shm"
OFTEN_OUT_OF_MEMORY = "most often the machine or the container is out of memory"
REASONS = {
    signal.SIGKILL: OFTEN_OUT_OF_MEMORY,
    signal.SIGBUS: f"{SHARED_MEMORY} is full: give the container more with --shm-size",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Pickled:
    """A batch that did not fit into shared memory and is sent through a pipe."""

    content: bytes
    free: int
    """Free bytes in `/dev/shm`."""


@dataclass(frozen=True)
class SharedCollate(Generic[T]):
    """Collates samples and, in a worker, moves the tensors into shared memory.

    PyTorch would do so later in a thread whose errors are not reported: the batch would be lost,
    and the trainer would wait for it forever.
    """

    collate: Callable[[Sequence[Any]], T]

    def __call__(self, samples: Sequence[Any]) -> T | Pickled:
        batch = self.collate(samples)
        if get_worker_info() is None:
            return batch
        try:
            for tensor in tensors_of(batch):
                tensor.share_memory_()
        except RuntimeError:  # no space, no such folder, or too many open files
            return Pickled(pickle.dumps(batch), _free_bytes(SHARED_MEMORY))
        return batch


def iterate(loader: DataLoader[Any], warn: Callable[[str], None]) -> Iterator[Any]:
    """Iterate over a loader whose `collate_fn` is a `SharedCollate`. Workers are started now.

    Args:
        loader: the loader. If it has workers, its `timeout` must be `POLL_SECONDS`.
        warn: called once if shared memory is too small.

    Raises:
        WorkerError: workers cannot be started; (while iterating) one died, or all are stuck.
    """
    previous = _sigchld_handler()
    try:
        iterator = iter(loader)
    except BaseException as error:  # a signal, too
        _discard_unfinished(error)
        if not isinstance(error, OSError):
            raise
        raise WorkerError(
            f"{loader.num_workers} worker processes cannot be started: {error}; "
            "lower train.workers (0 reads in the training process), or give a container more "
            f"{SHARED_MEMORY} with --shm-size"
        ) from error
    finally:
        # Remove PyTorch's handler: it raises wherever the program happens to be, even in a save.
        _set_sigchld_handler(previous)
    workers: Sequence[BaseProcess] = getattr(iterator, "_workers", ())
    if workers:  # hide these workers from a handler that another loader of the program installed
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
        iterator._worker_pids_set = False  # type: ignore[attr-defined]
    # If an error keeps this iterator alive until the program ends, `multiprocessing` would send
    # SIGTERM, which the workers ignore, and wait for them forever.
    end = Finalize(None, _kill, args=(workers,), exitpriority=0)
    return _unpickle(_watch(iterator, workers, end), loader, warn)


def _watch(
    iterator: Iterator[Any], workers: Sequence[BaseProcess], end: Callable[[], None]
) -> Iterator[Any]:
    polls = 0
    try:
        while True:
            try:
                with _interrupted_by_deaths(iterator, workers) as deaths:
                    batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                if isinstance(error, OSError | EOFError):  # may be the first sign of a death
                    _wait_for_death(workers)
                # PyTorch noticed a death first, or a worker ended while sending a batch.
                broken = isinstance(error, ConnectionError | EOFError)
                unexpected = broken or "exited unexpectedly" in str(error)
                deaths = deaths or _find_deaths(workers, (None,) if unexpected else (None, 0))
                polls += 1
                stuck = "DataLoader timed out" in str(error)
                if stuck and not deaths and polls < PATIENCE_POLLS:
                    continue
                if not (stuck or deaths):
                    raise
                _abandon(iterator, workers)
                raise WorkerError(deaths[0] if deaths else _describe_stall(workers)) from None
            except BaseException:  # such as a signal; a worker may be stuck
                _abandon(iterator, workers)
                raise
            else:
                polls = 0
                yield batch
    finally:
        if workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # if not killed already
        end()


def _unpickle(
    batches: Iterator[Any], loader: DataLoader[Any], warn: Callable[[str], None]
) -> Iterator[Any]:
    warned = False
    for batch in batches:
        if not isinstance(batch, Pickled):
            yield batch
            continue
        if not warned:
            warned = True
            needed = len(batch.content) * (loader.prefetch_factor or 1) * loader.num_workers
            warn(
                f"{SHARED_MEMORY} is too small for the batches of {loader.num_workers} workers "
                f"(needed: {needed / 1e6:.0f} MB, free: {batch.free / 1e6:.0f} MB): they are sent "
                "through pipes, which is slower; give the container more with --shm-size, or "
                "lower train.workers"
            )
        unpickled = pickle.loads(batch.content)
        yield unpickled.pin_memory() if loader.pin_memory else unpickled


@contextmanager
def _interrupted_by_deaths(
    iterator: Iterator[Any], workers: Sequence[BaseProcess]
) -> Iterator[list[str]]:
    """Make the death of a worker end the wait for a batch. Yields a list that describes the deaths.

    A worker that is killed while writing leaves an incomplete message, and a read would wait for
    the rest forever. The signal handler must not raise, because it may interrupt any code. Instead,
    it kills all writers and closes the pipe, so that the read itself fails.
    """
    deaths: list[str] = []

    def on_death(*_: object) -> None:
        deaths.extend(_find_deaths(workers, (None, 0)) if not deaths else ())
        if deaths:
            _kill(workers)
            iterator._worker_result_queue._writer.close()  # type: ignore[attr-defined]

    previous = _sigchld_handler()
    _set_sigchld_handler(on_death)
    try:
        on_death()
        yield deaths
    finally:
        _set_sigchld_handler(previous)


def _wait_for_death(workers: Sequence[BaseProcess]) -> None:
    ended = wait([worker.sentinel for worker in workers], timeout=1)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()


def _find_deaths(workers: Sequence[BaseProcess], alive: tuple[int | None, ...]) -> list[str]:
    return [
        _describe_death(index, workers)
        for index, worker in enumerate(workers)
        if worker.exitcode not in alive
    ]


def _describe_stall(workers: Sequence[BaseProcess]) -> str:
    return (
        f"no batch came for {PATIENCE_POLLS * POLL_SECONDS} s from {len(workers)} workers, "
        "which are alive: check that the data can be read (is it on a network file system?), or "
        "set train.workers=0 to read in the training process"
    )


def _describe_death(index: int, workers: Sequence[BaseProcess]) -> str:
    code = workers[index].exitcode or 0
    if code < 0:
        number = signal.Signals(-code)
        reason = f"was killed by {number.name}"
        if number in REASONS:
            reason += f" ({REASONS[number]})"
    else:
        reason = f"ended with exit code {code}"
    return (
        f"worker {index + 1} of {len(workers)}, which prepares batches (process "
        f"{workers[index].pid}), {reason}; lower train.workers or the batch size"
    )


def _abandon(iterator: Iterator[Any], workers: Sequence[BaseProcess]) -> None:
    """Kill the workers. PyTorch's own shutdown could wait forever for a worker that is stuck, or
    for a lock that a dead one holds.
    """
    if workers and not iterator._shutdown:  # type: ignore[attr-defined]
        iterator._shutdown = True  # type: ignore[attr-defined]
    _kill(workers)


def _discard_unfinished(error: BaseException) -> None:
    """Kill the workers that an iterator had started when this error ended its constructor.

    They ignore SIGTERM, so the program would wait for them forever when it ends. Only the traceback
    refers to that iterator, whose own shutdown would fail for lack of attributes.
    """
    for frame, _ in walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _BaseDataLoaderIter):
            iterator._shutdown = True  # type: ignore[attr-defined]
            _kill(getattr(iterator, "_workers", ()))


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _sigchld_handler() -> Any:
    return signal.getsignal(signal.SIGCHLD)


def _set_sigchld_handler(handler: Any) -> None:
    # Python allows handlers in the main thread only; PyTorch sets none elsewhere either.
    if threading.current_thread() is threading.main_thread():
        # None stands for a handler installed from C, which cannot be restored.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a batch of nested dataclasses and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))


def _free_bytes(folder: str) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
