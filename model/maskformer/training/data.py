"""The data of a training run: both splits, and the loader of training batches."""

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
    """The training and validation data of a recipe.

    Attributes:
        train, val: the splits, which have the same classes.
        config: the recipe, with augmentation, batch size and seed.
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
        """Return this rank's batches from a step on; each step takes `train.accumulate` of them.

        Raises:
            ConfigError: `train.batch_size` is not a multiple of processes times `train.accumulate`.
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
        """Return the training images, grouped by aspect ratio if a batch has several of them.

        The main process reads the image sizes and broadcasts the result, because the sampling of
        all processes must agree even if a file can be read on one machine only.
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
