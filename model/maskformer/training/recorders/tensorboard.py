"""TensorBoard's files of a run; whatever goes wrong with them ends no training."""

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
    """Curves and pictures of a run.

    A full disk ends TensorBoard's writer for good: a new one is opened with the next figures.

    Args:
        folder: of the event files.
        warn: told what could not be recorded, once as long as the reason stays the same.
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
        """Records figures, and pictures `[3, H, W]` uint8, under `prefix/name`."""
        with self._warning(step):
            writer = self._open_writer(purge_step=step)
            for name, value in values.items():
                writer.add_scalar(f"{prefix}/{name}", value, step)
            for name, picture in (pictures or {}).items():
                writer.add_image(f"{prefix}/{name}", picture, step)

    def add_recipe(self, text: str, values: Mapping[str, Plain], metric: str, step: int) -> None:
        """Records what a run that starts at `step` is made of.

        Args:
            text: the recipe.
            values: its values by dotted key, for the table of hyperparameters.
            metric: the figure that stands beside them, such as `val/miou`.
        """
        with self._warning(step):
            # What an earlier run wrote up to this step stays.
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
            # Without the file, whose name is another one at each opening.
            reason = getattr(error, "strerror", None) or str(error)
            if reason != self._problem:
                self._warn(
                    f"could not record step {step} for TensorBoard: {reason} ({self._folder})"
                )
            self._problem = reason

    @contextmanager
    def open(self) -> Iterator[None]:
        """Closes the files in the end; their threads die in silence, `add` reports them."""
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
