"""Threads that read and write beside what the main one computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST = 8
"""More would wait for the disk or for each other."""

T = TypeVar("T")
R = TypeVar("R")


def available_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which PyTorch's operations take one CPU each, at most `MOST`; what has not begun
    when an error ends the block is left out.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        max(min(count, MOST), 1), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # those of the pool changed it for threads to come


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[R]:
    """`map` in order, with at most `count` results that wait or are being made."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
