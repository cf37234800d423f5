"""Progress of long work (a bar on a terminal, plain lines in a log) and tables of figures."""

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

from maskformer.system.text import StandardOutput, escape

if TYPE_CHECKING:
    from maskformer.modeling.model_info import ModelInfo

LINE_SECONDS = 30.0
"""Between two lines about the progress of a count, where there is no terminal."""
LONG_TABLE = 30
"""Classes; in longer tables only those are shown that occur."""


class Progress:
    """Reports training and evaluation; silent on all processes but the main one."""

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        # Paths and error messages may hold brackets and colons: they are no markup.
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
        """Shows the bar of a training run that starts at `step`."""
        self._steps = steps
        with self._showing:
            self._training = self._bars.add_task("training", total=steps, completed=step, note="")
            yield

    def advance(self, step: int) -> None:
        """One training step is done."""
        if self._training is not None:
            self._bars.update(self._training, completed=step)

    def log(
        self, step: int, values: Mapping[str, float], seconds_left: float | None = None
    ) -> None:
        """One line about the last logging interval, and the note beside the bar."""
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
        """Shows a bar for `total` images; the counter's `advance(n)` moves it."""
        counter = partial(Counter, self._bars, description, total, self._say_rate)
        if self._bars.live.is_started:
            yield counter()
        else:
            with self._showing:
                yield counter()

    def _say_rate(self, line: str) -> None:
        """In a log, which shows no bar."""
        if not self.console.is_terminal:
            self.print(line)

    def print(self, message: str | Table) -> None:
        """Shows a line or a table; names in it may hold anything, and no terminal is too poor."""
        self.console.print(escape(message, newlines=True) if isinstance(message, str) else message)

    def warn(self, message: str) -> None:
        self._say("warning", "yellow", message)

    def error(self, message: str) -> None:
        """One of several things that are wrong; one alone is raised."""
        self._say("error", "red", message)

    def _say(self, kind: str, color: str, message: str) -> None:
        self.console.print(Text.assemble((f"{kind}: ", color), escape(message, newlines=True)))


def duration(seconds: float) -> str:
    """The two largest units, such as `3 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _loss_parts(values: Mapping[str, float]) -> str:
    """The losses of the final layer, where there are several."""
    parts = [name for name in values if re.fullmatch(r"loss_[a-z_]*[a-z]", name)]
    text = "  ".join(f"{name.removeprefix('loss_')} {values[name]:.3f}" for name in parts)
    return f" ({text})" if len(parts) > 1 else ""


class Counter:
    """One bar among those of a `Progress`; it goes away when full.

    Args:
        say: told now and then how far it is, how many images it counts per second, and when it
            will be full.
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
        self._start = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        self._bars.update(self._task, advance=count, note=f"{rate:.1f} images/s")
        if self._done >= self._total:
            self._bars.remove_task(self._task)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            left = duration((self._total - self._done) / rate)
            self._say(
                f"{self._description}: {self._done}/{self._total}  {rate:.1f} images/s  {left} left"
            )


def written(output: Path) -> str:
    """Where training and evaluation leave their results."""
    return (
        f"The figures are in {output / 'metrics.json'}, the pictures in {output / 'predictions'}."
    )


def metrics_table(metrics: Mapping[str, float], title: str) -> Table:
    """Two columns: what was measured, and the figure."""
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
    """One row per class; figures that do not exist (a class that never occurs) stay empty.

    Args:
        names: of the classes.
        columns: figures by class, NaN where there is none.
        title: above the table.
        everything: a long table shows classes that never occur, too.
    """
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    table.add_column("class")
    for column in columns:
        table.add_column(column, justify="right")
    left_out = 0
    for index, name in enumerate(names):
        values = [columns[column][index] for column in columns]
        if len(names) > LONG_TABLE and not everything and all(map(math.isnan, values)):
            left_out += 1
            continue
        table.add_row(escape(name), *("" if value != value else f"{value:.3f}" for value in values))
    if left_out:
        table.caption = f"{left_out} classes that do not occur: shown with eval.all_classes=true"
    return table


def info_table(info: ModelInfo, title: str) -> Table:
    """Parameters and multiply-adds by part of the model."""
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
    """Bytes: the allocator's peak on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
