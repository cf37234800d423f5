"""TensorBoard's files of a run; whatever goes wrong with them ends no training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


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
        try:
            if self._writer is None:
                self._writer = SummaryWriter(self._folder, purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
            for name, picture in (pictures or {}).items():
                self._writer.add_image(f"{prefix}/{name}", picture, step)
            self._problem = ""
        except Exception as error:
            self._writer = None
            if str(error) != self._problem:
                self._warn(f"could not record step {step} for TensorBoard: {error}")
            self._problem = str(error)

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
