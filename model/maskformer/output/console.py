"""Progress reports (a bar on a terminal, plain lines in a log) and tables of metrics."""

from __future__ import annotations

import math
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from maskformer.output.output_folder import METRICS, PREDICTIONS
from maskformer.system.text import StandardOutput, escape

if TYPE_CHECKING:
    from maskformer.modeling.model_info import ModelInfo

LINE_SECONDS = 30.0
"""Seconds between two lines about the progress of a count in a log."""
LONG_TABLE = 30
"""Tables with more classes than this show only the classes that occur."""


class Progress:
    """Reports training and evaluation; prints nothing if it is not enabled."""

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        # No markup, because paths and error messages may contain brackets and colons.
        self.console = console or Console(
            quiet=not enabled,
            highlight=False,
            soft_wrap=True,
            markup=False,
            emoji=False,
            file=cast(IO[str], StandardOutput()),
        )
        shown = enabled and self.console.is_terminal
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not shown,
        )
        # Before 14.3, rich ends even disabled bars with an empty line.
        self._showing: AbstractContextManager[object] = self._bars if shown else nullcontext()
        self._training: TaskID | None = None
        self._steps = 0

    @contextmanager
    def training(self, step: int, steps: int) -> Iterator[None]:
        """Show the progress bar of a training run that starts at `step`."""
        self._steps = steps
        with self._showing:
            self._training = self._bars.add_task("training", total=steps, completed=step, note="")
            yield

    def advance(self, step: int) -> None:
        """Advance the bar to a finished training step."""
        if self._training is not None:
            self._bars.update(self._training, completed=step)

    def log(
        self, step: int, values: Mapping[str, float], seconds_left: float | None = None
    ) -> None:
        """Report the last logging interval: in a line, or on a terminal, next to the bar."""
        note = (
            f"loss {values['loss']:.3f}{_loss_parts(values)}  "
            f"{values['images_per_second']:.1f} images/s  {values['peak_memory_mb'] / 1e3:.2f} GB"
        )
        if "epoch" in values:
            note = f"epoch {values['epoch']:.1f}  {note}"
        if self._training is not None:
            self._bars.update(self._training, note=note)
        if not self.console.is_terminal:
            left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
            rates = f"lr {values['lr']:.2e}"
            if values.get("lr_backbone", values["lr"]) != values["lr"]:
                rates += f" (backbone {values['lr_backbone']:.2e})"
            self.print(f"step {step}/{self._steps}  {note}  {rates}{left}")
        for name in ("skipped_steps", "bad_costs"):
            if values.get(name):
                self.warn(f"{name.replace('_', ' ')} since the start: {values[name]:.0f}")

    @contextmanager
    def counting(self, description: str, total: int) -> Iterator[Counter]:
        """Show a bar for `total` images, which the counter's `advance(n)` moves."""
        counter = partial(Counter, self._bars, description, total, self._print_in_log)
        if self._bars.live.is_started:
            yield counter()
        else:
            with self._showing:
                yield counter()

    def _print_in_log(self, line: str) -> None:
        """Print a line unless there is a bar."""
        if not self.console.is_terminal:
            self.print(line)

    def print(self, message: str | Table) -> None:
        """Print a line or a table. Control characters, and those that the output cannot encode, are
        escaped.
        """
        self.console.print(escape(message, newlines=True) if isinstance(message, str) else message)

    def warn(self, message: str) -> None:
        self._print_labelled("warning", "yellow", message)

    def error(self, message: str) -> None:
        """Print one of several errors; a single error is raised as an exception instead."""
        self._print_labelled("error", "red", message)

    def _print_labelled(self, kind: str, color: str, message: str) -> None:
        self.console.print(Text.assemble((f"{kind}: ", color), escape(message, newlines=True)))


def duration(seconds: float) -> str:
    """Format a duration with its two largest units, such as `3 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _loss_parts(values: Mapping[str, float]) -> str:
    """Format the losses of the final layer, if there are several."""
    parts = [name for name in values if re.fullmatch(r"loss_[a-z_]*[a-z]", name)]
    text = "  ".join(f"{name.removeprefix('loss_')} {values[name]:.3f}" for name in parts)
    return f" ({text})" if len(parts) > 1 else ""


class Counter:
    """One of the bars of a `Progress`, which is removed when it is full.

    Args:
        bars: the bars of the `Progress`.
        description: the text before the bar.
        total: the number of images.
        say: called every `LINE_SECONDS` with a line on the progress, the images per second and the
            remaining time.
    """

    def __init__(
        self, bars: Bars, description: str, total: int, say: Callable[[str], None]
    ) -> None:
        self._bars = bars
        self._description = escape(description)
        self._task = bars.add_task(self._description, total=total, note="")
        self._total = total
        self._done = 0
        self._say = say
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        self._bars.update(self._task, advance=count, note=f"{rate:.1f} images/s")
        if self._done >= self._total:
            self._bars.remove_task(self._task)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            left = duration((self._total - self._done) / rate)
            self._say(
                f"{self._description}: {self._done}/{self._total}  {rate:.1f} images/s  {left} left"
            )


def written(output: Path) -> str:
    """Return a line that says where the results of training or evaluation are."""
    pictures = output / PREDICTIONS
    drawn = f", the pictures in {pictures}" if any(pictures.glob("*")) else ""
    return f"The metrics are in {output / METRICS}{drawn}."


def metrics_table(metrics: Mapping[str, float], title: str) -> Table:
    """Return a table of metrics with their values."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        text = f"{value:.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.4f}"
        table.add_row(name, text)
    return table


def class_table(
    names: Sequence[str],
    columns: Mapping[str, Sequence[float]],
    title: str,
    *,
    everything: bool = False,
) -> Table:
    """Return a table with one row per class. Cells for NaN are empty.

    Args:
        names: the names of the classes.
        columns: for each column, the values of all classes; NaN if a class never occurs.
        title: the title of the table.
        everything: whether a long table also shows classes that never occur.
    """
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    table.add_column("class")
    for column in columns:
        table.add_column(column, justify="right")
    hidden = 0
    for index, name in enumerate(names):
        values = [columns[column][index] for column in columns]
        if len(names) > LONG_TABLE and not everything and all(map(math.isnan, values)):
            hidden += 1
            continue
        table.add_row(escape(name), *("" if value != value else f"{value:.3f}" for value in values))
    if hidden:
        table.caption = f"{hidden} classes that do not occur: shown with eval.all_classes=true"
    return table


def info_table(info: ModelInfo, title: str) -> Table:
    """Return a table of the parameters and multiply-adds of each part of a model."""
    height, width = info.size
    table = Table(title=escape(title), title_justify="left", show_footer=True)
    table.add_column("part", "total")
    table.add_column("parameters", f"{info.total_parameters:,}", justify="right")
    table.add_column(
        f"multiply-adds at {height}x{width}",
        f"{info.total_multiply_adds / 1e9:.1f} G",
        justify="right",
    )
    for part, count in info.multiply_adds.items():
        table.add_row(part, f"{info.parameters.get(part, 0):,}", f"{count / 1e9:.1f} G")
    return table


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the allocator on a GPU, resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
