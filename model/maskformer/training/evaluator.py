"""Evaluations in the course of training."""

from __future__ import annotations

import math
from dataclasses import replace

from accelerate import Accelerator

from maskformer.config.schema import Config
from maskformer.evaluation.evaluate import Evaluation, eval_loader, evaluate
from maskformer.evaluation.measures import default_metric, finite_score
from maskformer.modeling.base import SegmentationModel
from maskformer.output.console import Progress
from maskformer.system.process_group import share_buffers
from maskformer.system.signals import Interrupted, Signals
from maskformer.training.data import TrainingData


def score_metric(config: Config) -> str:
    """What the best checkpoint is best in."""
    return config.train.best_metric or default_metric(config.eval)


class Evaluator:
    """Scores a model on the validation split; every process sees its share of the images."""

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
        """The figures over all processes.

        Raises:
            Interrupted: a stop signal came, and this process trains alone.
            DatasetError, WorkerError: an image cannot be used, or none came.
        """
        share_buffers(model)
        loader = eval_loader(
            self.data.val,
            self.config,
            rank=self._accelerator.process_index,
            world_size=self._accelerator.num_processes,
            warn=self._progress.warn,
        )
        # One process alone must not leave the others waiting for its figures.
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
        # Nothing was labelled, or, say, no thing occurs.
        return replace(evaluation, score=finite_score(score))

    def _stop_if_asked(self) -> None:
        if self._signals.stop:
            raise Interrupted
