"""A progress bar for scans, silent when nobody watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    """The items; on a terminal, shows how many of `total` have been taken."""
    console = Console(stderr=True)
    if (
        not console.is_terminal
    ):  # there, rich before 14.3 ends even disabled bars with an empty line
        return items
    return rich_track(items, title, total, console=console, transient=True)
