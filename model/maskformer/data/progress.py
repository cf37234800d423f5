"""A progress bar for scans, silent when nobody watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Passes the items on; on a terminal, shows how many of `total` have come."""
    console = Console(stderr=True)
    yield from rich_track(
        items, title, total, console=console, transient=True, disable=not console.is_terminal
    )
