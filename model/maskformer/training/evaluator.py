"""Evaluation on the validation split during training."""

from __future__ import annotations

import math
from dataclasses import replace

from accelerate import Accelerator

from maskformer.config.schema import Config
from maskformer.evaluation.evaluate import Evaluation, eval_loader, evaluate
from maskformer.evaluation.measures import default_metric, finite_score
from maskformer.modeling.base import SegmentationModel
from maskformer.output.console import Progress
from maskformer.system.process_group import broadcast_buffers
from maskformer.system.signals import Interrupted, Signals
from maskformer.training.data import TrainingData


def score_metric(config: Config) -> str:
    """Return the name of the metric by which the best checkpoint is chosen."""
    return config.train.best_metric or default_metric(config.eval)


class Evaluator:
    """Scores a model on the validation split, whose images are divided among the processes."""

    def __init__(
        self,
        data: TrainingData,
        config: Config,
        accelerator: Accelerator,
        signals: Signals,
        progress: Progress,
    ) -> None:
        self.data = data
        self.config = config
        self._accelerator = accelerator
        self._signals = signals
        self._progress = progress

    def __call__(self, model: SegmentationModel) -> Evaluation:
        """Evaluate a model, and return the metrics over all processes.

        Raises:
            Interrupted: a stop signal came, and this is the only process.
            DatasetError, WorkerError: an image cannot be used, or a data loader worker failed.
        """
        broadcast_buffers(model)
        loader = eval_loader(
            self.data.val,
            self.config,
            rank=self._accelerator.process_index,
            world_size=self._accelerator.num_processes,
            warn=self._progress.warn,
        )
        # With several processes, none may stop alone: the others would wait for its metrics.
        alone = self._accelerator.num_processes == 1
        evaluation = evaluate(
            model,
            loader,
            self.data.info,
            self.config.eval,
            self._accelerator.device,
            self._progress,
            between_batches=self._stop_if_asked if alone else None,
        )
        score = evaluation.metrics.get(score_metric(self.config), math.nan)
        # The score is NaN if nothing is labelled, or if no class of the metric's kind occurs.
        return replace(evaluation, score=finite_score(score))

    def _stop_if_asked(self) -> None:
        if self._signals.stop:
            raise Interrupted
