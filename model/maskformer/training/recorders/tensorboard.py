"""TensorBoard files of a run. Failures to write them do not end training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from maskformer.training.recorders.plain import Plain


class Board:
    """Writes the curves and pictures of a run for TensorBoard.

    A full disk ends TensorBoard's writer for good, so a new one is opened for the next values.

    Args:
        folder: the folder of the event files.
        warn: called if something could not be recorded, but not again while the reason
            stays the same.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn
        self._writer: SummaryWriter | None = None
        self._problem = ""

    def add(
        self,
        prefix: str,
        values: Mapping[str, float],
        step: int,
        pictures: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Record scalars, and pictures `[3, H, W]` uint8, under `prefix/name`."""
        with self._warning(step):
            writer = self._open_writer(purge_step=step)
            for name, value in values.items():
                writer.add_scalar(f"{prefix}/{name}", value, step)
            for name, picture in (pictures or {}).items():
                writer.add_image(f"{prefix}/{name}", picture, step)

    def add_recipe(self, text: str, values: Mapping[str, Plain], metric: str, step: int) -> None:
        """Record the recipe of a run that starts at `step`.

        Args:
            text: the recipe as YAML.
            values: its values by dotted key, for the table of hyperparameters.
            metric: the metric shown in that table, such as `val/miou`.
            step: the step.
        """
        with self._warning(step):
            # Keep what the run wrote up to this step in an earlier session.
            writer = self._open_writer(purge_step=step + 1)
            writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()), step)
            for summary in hparams(dict(values), {metric: 0.0}):
                writer._get_file_writer().add_summary(summary)

    def _open_writer(self, *, purge_step: int) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(self._folder, purge_step=purge_step)
        return self._writer

    @contextmanager
    def _warning(self, step: int) -> Iterator[None]:
        try:
            yield
            self._problem = ""
        except Exception as error:
            self._writer = None
            # `strerror` lacks the file name, which differs each time a file is opened.
            reason = getattr(error, "strerror", None) or str(error)
            if reason != self._problem:
                self._warn(
                    f"could not record step {step} for TensorBoard: {reason} ({self._folder})"
                )
            self._problem = reason

    @contextmanager
    def open(self) -> Iterator[None]:
        """Close the files at the end of the block. Exceptions in TensorBoard's threads are not
        printed, because `add` reports them.
        """
        before = threading.excepthook

        def report(args: threading.ExceptHookArgs) -> None:
            if not type(args.thread).__module__.startswith("tensorboard."):
                before(args)

        threading.excepthook = report
        try:
            yield
        finally:
            if self._writer is not None:
                with suppress(Exception):  # such as a full disk, already reported
                    self._writer.close()
            threading.excepthook = before
