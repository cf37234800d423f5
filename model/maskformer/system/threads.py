"""Threads for reading and writing in parallel to the computation in the main thread."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

MAX_THREADS = 8
"""More threads would wait for the disk or for each other."""

T = TypeVar("T")
R = TypeVar("R")


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Create up to `MAX_THREADS` threads, in each of which PyTorch's operations use one CPU. At the
    end of the block, tasks that have not started are cancelled.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        max(min(count, MAX_THREADS), 1), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the threads have changed the default for new threads


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[R]:
    """Like `map`, in order, but with at most `count` results ahead of the consumer."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
