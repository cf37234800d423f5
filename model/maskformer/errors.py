"""Errors that the command line turns into one line, and that are neither ValueError nor OSError."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; the message says what was kept."""


class HubError(RuntimeError):
    """The Hugging Face hub cannot be reached or has no such model."""


class TrainingStoppedError(RuntimeError):
    """SIGINT, SIGTERM, SIGHUP or SIGUSR1 ended the run after a complete, saved step."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class TrainingDivergedError(RuntimeError):
    """No finite gradient came out of a whole logging interval."""
