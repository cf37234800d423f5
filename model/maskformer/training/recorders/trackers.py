"""Weights & Biases and other trackers through accelerate. Once they have started, their failures do
not end training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from maskformer.config.schema import Tracker
from maskformer.errors import ConfigError
from maskformer.training.recorders.plain import Plain

PROJECT = "maskformer"


def check_trackers(names: tuple[Tracker, ...]) -> list[str]:
    """Return the names of the trackers that are used through accelerate: all but TensorBoard.

    Raises:
        ConfigError: the package of a tracker is missing, or accelerate is too old for it.
    """
    others: list[str] = [name for name in dict.fromkeys(names) if name != "tensorboard"]
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in others:
        if name not in LoggerType.list():
            raise ConfigError(
                f"train.trackers: the installed accelerate does not support {name}; update it "
                "with: pip install --upgrade accelerate"
            )
        if name not in available:
            raise ConfigError(
                f"train.trackers: {name} is not installed; install it with: pip install {name}, "
                "or remove it from train.trackers"
            )
    return others


class Trackers:
    """The trackers of an accelerator, whether they were set by a recipe or by a program.

    Args:
        accelerator: the accelerator with the trackers.
        run: the name of the run in the trackers.
        folder: where trackers that write local files put them.
        warn: called if something could not be recorded, but not again while the reason
            stays the same.
    """

    def __init__(
        self, accelerator: Accelerator, run: str, folder: Path, warn: Callable[[str], None]
    ) -> None:
        self._accelerator = accelerator
        self._run = run
        self._folder = folder
        self._warn = warn
        self._problem = ""

    @contextmanager
    def open(self, values: Mapping[str, Plain]) -> Iterator[None]:
        """Start the trackers with the values of the recipe; end them after the block.

        Raises:
            ConfigError: a tracker cannot be started, for example without a login.
        """
        if not self._accelerator.log_with:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"wandb": {"name": self._run, "dir": str(self._folder)}}
        try:
            self._accelerator.init_trackers(PROJECT, dict(values), options)
        except Exception as error:  # each tracker has its own exceptions
            raise ConfigError(f"train.trackers: could not start: {error}") from error
        try:
            yield
        finally:
            for tracker in self._accelerator.trackers:
                with suppress(Exception):  # everything has been recorded
                    tracker.finish()

    def add(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Record scalars under `prefix/name`."""
        try:
            self._accelerator.log({f"{prefix}/{name}": v for name, v in values.items()}, step)
            self._problem = ""
        except Exception as error:
            if str(error) != self._problem:
                self._warn(f"could not record step {step} for the trackers: {error}")
            self._problem = str(error)
