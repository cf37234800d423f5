"""Both splits of a data set, and the batches of a training run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from maskformer.config.schema import Config
from maskformer.data import Dataset, DatasetInfo, Normalize, TrainLoader, TrainTransform
from maskformer.data.aspect import GroupedByAspect, find_landscape
from maskformer.data.image_files.reader import ImageReader
from maskformer.output.console import Progress


@dataclass
class TrainingData:
    """The data that a recipe trains on and is scored on.

    Attributes:
        train, val: both splits; they have the same classes.
        config: augmentation, size of the batches and seed.
    """

    train: Dataset
    val: Dataset
    config: Config
    accelerator: Accelerator
    progress: Progress

    @property
    def info(self) -> DatasetInfo:
        """The classes."""
        return self.train.info

    def loader(self, step: int) -> TrainLoader:
        """The batches of this process from a step on; `train.accumulate` of them are a step.

        Raises:
            ConfigError: processes and `train.accumulate` do not divide `train.batch_size`.
        """
        train = self.config.train
        return TrainLoader(
            self._grouped(),
            TrainTransform(self.config.data.augmentation),
            train.batch_size,
            train.seed,
            start_step=step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=train.workers,
            accumulate=train.accumulate,
            normalize=Normalize.from_config(self.config.model),
            pin_memory=self.accelerator.device.type == "cuda",
            warn=self.progress.warn,
        )

    def _grouped(self) -> Dataset:
        """The training images, by their shape where several share a batch.

        The main process tells the others: their batches must agree, even where a file could be read
        on one machine and not on another.
        """
        train = self.config.train
        parts = self.accelerator.num_processes * train.accumulate
        if not train.group_by_aspect or train.batch_size <= parts:
            return self.train
        found: list[NDArray[np.bool_] | None] = [None]
        if self.accelerator.is_main_process:
            reader = ImageReader.from_config(self.config.data)
            found = [find_landscape(self.train, reader)]
        (landscape,) = broadcast_object_list(found)
        return GroupedByAspect(self.train, landscape)
