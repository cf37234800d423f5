"""A progress bar for scans of data, shown on terminals only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    """Return the items; on a terminal, show a progress bar of `total` items."""
    console = Console(stderr=True)
    # Without a terminal, rich before 14.3 ends even a disabled bar with an empty line.
    if not console.is_terminal:
        return items
    return rich_track(items, title, total, console=console, transient=True)
