"""Scans of data: in several threads, with a progress bar that is shown on terminals only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from maskformer.system.threads import MAX_THREADS, available_cpus

T = TypeVar("T")
R = TypeVar("R")


def track(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    """Return the items; on a terminal, show a progress bar of `total` items."""
    console = Console(stderr=True)
    # Without a terminal, rich before 14.3 ends even a disabled bar with an empty line.
    if not console.is_terminal:
        return items
    return rich_track(items, title, total, console=console, transient=True)


def map_in_threads(function: Callable[[T], R], items: Sequence[T], title: str) -> Iterator[R]:
    """Call a function for each item in several threads; yield the results in order.

    If this is interrupted, the calls that have not started are cancelled.
    """
    pool = ThreadPoolExecutor(min(available_cpus(), MAX_THREADS))
    try:
        yield from track(pool.map(function, items), len(items), title)
    finally:
        pool.shutdown(cancel_futures=True)
