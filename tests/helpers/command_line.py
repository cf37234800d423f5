"""What the `run` fixture is: the command line, called with arguments."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Gives back the exit code and what was printed to standard output and error."""
