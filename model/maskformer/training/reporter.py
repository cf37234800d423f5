"""Reporting of a run: console, curves and pictures on disk, and `metrics.json`."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from maskformer.config.load import to_yaml
from maskformer.config.schema import Config, TrainConfig
from maskformer.data import DatasetInfo
from maskformer.evaluation.evaluate import Evaluation, write_pictures
from maskformer.evaluation.figures import read_metrics, write_confusion, write_metrics
from maskformer.output.console import Progress, class_table, peak_memory
from maskformer.output.output_folder import PREDICTIONS
from maskformer.training.evaluator import score_metric
from maskformer.training.log_folder import find_log_folder, mark_log_folder
from maskformer.training.log_window import LogWindow
from maskformer.training.recorders.plain import plain_values
from maskformer.training.recorders.tensorboard import Board
from maskformer.training.recorders.trackers import Trackers
from maskformer.training.run_folder import mark_run


class Reporter:
    """Reports the progress of a run. Failures of TensorBoard, trackers or pictures during training
    do not end it.

    Args:
        output: the run folder.
        steps: the number of steps of the run.
        accelerator: its trackers, if it has any, also record the metrics.
        progress: prints to the console.
        config: the recipe, which is recorded with the metrics. It determines the log folder, and
            whether TensorBoard is used.
        info: the names of the classes.
        epoch_steps: the number of steps per epoch.
    """

    def __init__(
        self,
        output: Path,
        steps: int,
        accelerator: Accelerator,
        progress: Progress,
        *,
        config: Config | None = None,
        info: DatasetInfo | None = None,
        epoch_steps: float | None = None,
    ) -> None:
        self._output = output
        self._steps = steps
        self._accelerator = accelerator
        self._progress = progress
        self._config = config
        self._info = info
        self._epoch_steps = epoch_steps
        train = config.train if config is not None else TrainConfig()
        folder = find_log_folder(output, train)
        self._trackers = Trackers(accelerator, output.resolve().name, folder, progress.warn)
        self._board = Board(folder, progress.warn) if "tensorboard" in train.trackers else None
        self._images, self._seconds = 0, 0.0
        self._started = (0, time.monotonic())

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Start reporting on a run that starts at `step`; stop at the end of the block.

        Raises:
            ConfigError: a tracker cannot be started.
        """
        self._started = step, time.monotonic()
        values = plain_values(self._config) if self._config is not None else {}
        with ExitStack() as stack:
            stack.enter_context(self._trackers.open(values))
            if self._board is not None and self._accelerator.is_main_process:
                stack.enter_context(self._board.open())
                if self._config is not None:
                    mark_log_folder(self._output, self._config.train)
                    metric = f"val/{score_metric(self._config)}"
                    self._board.add_recipe(to_yaml(self._config), values, metric, step)
            stack.enter_context(self._progress.training(step, self._steps))
            yield

    def advance(self, step: int) -> None:
        """Advance the progress bar to a finished step."""
        self._progress.advance(step)

    def log(self, step: int, values: dict[str, float], window: LogWindow) -> None:
        """Log the metrics of a window."""
        if self._epoch_steps is not None:
            values = {**values, "epoch": step / self._epoch_steps}
        self._record("train", values, step)
        first, start = self._started
        seconds_left = (time.monotonic() - start) / max(step - first, 1) * (self._steps - step)
        self._progress.log(step, values, seconds_left)
        self._images += window.images * window.processes
        self._seconds += window.seconds

    def add_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Report the metrics and pictures of an evaluation."""
        self._record("val", evaluation.metrics, step, evaluation.pictures)
        if self._accelerator.is_main_process:
            try:
                mark_run(self._output, write_pictures(evaluation, self._output / PREDICTIONS))
            except (OSError, ValueError) as error:
                self._progress.warn(f"could not write the pictures of step {step}: {error}")
        everything = self._config is not None and self._config.eval.all_classes
        title, classes = f"step {step} by class", self._classes(evaluation)
        table = class_table(classes, evaluation.per_class, title, everything=everything)
        self._progress.print(table)
        names = ("miou", "macc", "pacc", "pq", "ap")
        scores = [name for name in names if name in evaluation.metrics]
        figures = "  ".join(f"val {name} {evaluation.metrics[name]:.4f}" for name in scores)
        self._progress.print(f"step {step}/{self._steps}  {figures}")

    def stopped_early(self, step: int, evaluations: int) -> None:
        """Report that training ended before its last step because no score improved."""
        self._progress.print(
            f"stopped early at step {step}/{self._steps}: no better score in {evaluations} "
            "evaluations (train.patience); checkpoints/best is the best"
        )

    def earlier_metrics(self, step: int) -> dict[str, float] | None:
        """Return the metrics that `finish` wrote at `step` in an earlier session, or None."""
        figures = read_metrics(self._output)
        return figures if figures is not None and figures.get("step") == step else None

    def already_finished(self, step: int, *, early: bool) -> None:
        """Report that a resumed run was finished already, and how to train it further."""
        key = f"train.steps={2 * step}"
        if early and self._config is not None:
            key = f"train.patience={2 * (self._config.train.patience or 1)}"
        self._progress.print(
            f"already finished at step {step}: its metrics are kept; to train further, raise "
            f"{key.partition('=')[0]}: "
            f"maskformer train --resume --output {shlex.quote(str(self._output))} {key}"
        )

    def finish(self, step: int, evaluation: Evaluation) -> dict[str, float]:
        """Write `metrics.json`, and return its metrics."""
        metrics = dict(evaluation.metrics)
        metrics["step"] = step
        metrics["train_images_per_second"] = (
            self._images / self._seconds if self._images else math.nan
        )
        metrics["peak_memory_mb"] = peak_memory(self._accelerator.device) / 1e6
        if self._accelerator.is_main_process:
            write_metrics(self._output, metrics, evaluation, self._classes(evaluation))
            try:
                write_confusion(self._output, evaluation, self._classes(evaluation))
            except (OSError, ValueError) as error:
                self._progress.warn(f"could not write the confusion matrix: {error}")
        return metrics

    def _classes(self, evaluation: Evaluation) -> Sequence[str]:
        if self._info is not None:
            return self._info.classes
        count = max(map(len, evaluation.per_class.values()), default=0)
        return [f"class {index}" for index in range(count)]

    def _record(
        self,
        prefix: str,
        values: dict[str, float],
        step: int,
        pictures: dict[str, Tensor] | None = None,
    ) -> None:
        self._trackers.add(prefix, values, step)
        if self._board is not None and self._accelerator.is_main_process:
            self._board.add(prefix, values, step, pictures)
