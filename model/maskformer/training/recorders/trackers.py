"""Weights & Biases and others, through accelerate; what goes wrong later ends no training."""

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
    """Those that go through accelerate.

    Raises:
        ConfigError: a package is missing, or accelerate is too old for it.
    """
    others: list[str] = [name for name in dict.fromkeys(names) if name != "tensorboard"]
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in others:
        if name not in LoggerType.list():
            raise ConfigError(
                f"train.trackers: this accelerate knows no {name}; update it with: pip install "
                "--upgrade accelerate"
            )
        if name not in available:
            raise ConfigError(
                f"train.trackers: {name} is not installed; install it with: pip install {name}, "
                "or take it out of train.trackers"
            )
    return others


class Trackers:
    """The trackers of an accelerator, whether a recipe or a program named them.

    Args:
        run: what they call the run.
        folder: for the files of those that keep them here.
        warn: told what could not be recorded, once as long as the reason stays the same.
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
        """Starts them with the values of the recipe, and ends them.

        Raises:
            ConfigError: one cannot start, such as for want of a login.
        """
        if not self._accelerator.log_with:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"wandb": {"name": self._run, "dir": str(self._folder)}}
        try:
            self._accelerator.init_trackers(PROJECT, dict(values), options)
        except Exception as error:  # each has errors of its own
            raise ConfigError(f"train.trackers: could not start: {error}") from error
        try:
            yield
        finally:
            for tracker in self._accelerator.trackers:
                with suppress(Exception):  # nothing more to record
                    tracker.finish()

    def add(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Records figures under `prefix/name`."""
        try:
            self._accelerator.log({f"{prefix}/{name}": v for name, v in values.items()}, step)
            self._problem = ""
        except Exception as error:
            if str(error) != self._problem:
                self._warn(f"could not record step {step} for the trackers: {error}")
            self._problem = str(error)
