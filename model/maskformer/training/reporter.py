"""What a run tells: lines and bars on the console, curves and pictures on disk, `metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from maskformer.evaluation.evaluate import Evaluation, metrics_to_json, write_pictures
from maskformer.output.console import Progress, peak_memory
from maskformer.system.writing import write_text
from maskformer.training.log_window import LogWindow
from maskformer.training.run_folder import METRICS, PREDICTIONS, TENSORBOARD, mark_run
from maskformer.training.tensorboard import Board


class Reporter:
    """Tells what a run does; what fails on the way ends no training.

    Args:
        output: the run folder.
        steps: at which the run ends.
    """

    def __init__(
        self, output: Path, steps: int, accelerator: Accelerator, progress: Progress
    ) -> None:
        self._output = output
        self._steps = steps
        self._accelerator = accelerator
        self._progress = progress
        self._board = Board(output / TENSORBOARD, progress.warn)
        self._images, self._seconds = 0, 0.0

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """For a run that starts at `step`."""
        with self._board.open(), self._progress.training(step, self._steps):
            yield

    def advance(self, step: int) -> None:
        """One step is done."""
        self._progress.advance(step)

    def log(self, step: int, values: dict[str, float], window: LogWindow) -> None:
        """The figures of a window."""
        if self._accelerator.is_main_process:
            self._board.add("train", values, step)
        self._progress.log(step, values)
        self._images += window.images * window.processes
        self._seconds += window.seconds

    def add_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Figures and pictures of an evaluation."""
        if self._accelerator.is_main_process:
            self._board.add("val", evaluation.metrics, step, evaluation.pictures)
            try:
                mark_run(self._output, write_pictures(evaluation, self._output / PREDICTIONS))
            except (OSError, ValueError) as error:
                self._progress.warn(f"no pictures of step {step}: {error}")
        scores = [name for name in ("miou", "pq") if name in evaluation.metrics]
        figures = "  ".join(f"val {name} {evaluation.metrics[name]:.4f}" for name in scores)
        self._progress.print(f"step {step}/{self._steps}  {figures}")

    def finish(self, step: int, evaluation: Evaluation) -> dict[str, float]:
        """Writes `metrics.json` and returns its figures."""
        metrics = dict(evaluation.metrics)
        metrics["step"] = step
        metrics["train_images_per_second"] = (
            self._images / self._seconds if self._images else math.nan
        )
        metrics["peak_memory_mb"] = peak_memory(self._accelerator.device) / 1e6
        if self._accelerator.is_main_process:
            write_text(self._output / METRICS, metrics_to_json(metrics))
        return metrics
