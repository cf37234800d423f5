"""The data of a training run, and what its recipe derives from it."""

from __future__ import annotations

import math
from pathlib import Path

from accelerate import Accelerator

from maskformer.config.schema import Config, DataConfig, PixelLabels
from maskformer.data import DatasetInfo, build_dataset, check_splits
from maskformer.data.class_change import check_same_classes
from maskformer.data.inspection.checks import check_objects
from maskformer.errors import ConfigError
from maskformer.evaluation.measures import check_measures
from maskformer.output.console import Progress
from maskformer.output.protected_inputs import check_output_beside_data
from maskformer.system.text import counted
from maskformer.training.data import TrainingData
from maskformer.training.log_folder import find_log_folder

MANY_EPOCHS = 1000


def build_data(
    config: Config, output: Path, accelerator: Accelerator, progress: Progress
) -> TrainingData:
    """Build both splits, which the main process checks, and complete the recipe with the number of
    classes and steps.

    Raises:
        OutputError: `output` is or contains data of the recipe.
        DatasetError: the data cannot be used for training.
        ConfigError: `model.num_classes` contradicts the data, or `eval.panoptic` needs objects,
            which the labels do not separate.
    """
    check_objects(config.data, config.eval)
    train, val = build_dataset(config.data, "train"), build_dataset(config.data, "val")
    check_same_classes(train.info.classes, val.info.classes)
    check_measures(config.eval, val)
    for folder in (output, find_log_folder(output, config.train)):
        check_output_beside_data(folder, config.data, train, val)
    if accelerator.is_main_process:
        for split, dataset in (("train", train), ("val", val)):
            for note in getattr(dataset, "notes", ()):
                progress.print(f"{split} data: {note}")
        for warning in check_splits(train, val):
            progress.warn(warning)
    accelerator.wait_for_everyone()
    config = with_classes(config, len(train.info.classes))
    config = _with_steps(config, len(train), progress)
    check_best_metric(config, train.info)
    return TrainingData(train, val, config, accelerator, progress)


def with_classes(config: Config, count: int) -> Config:
    """Return the recipe with the data set's number of classes.

    Raises:
        ConfigError: the recipe states a different number.
    """
    wanted = config.model.num_classes
    if wanted not in (None, count):
        raise ConfigError(
            f"model.num_classes is {wanted}, but the data set has {count} classes"
            f"{_origin_of_classes(config.data)}; remove the key to use the data set's number"
        )
    return config.model_copy(
        update={"model": config.model.model_copy(update={"num_classes": count})}
    )


def _origin_of_classes(data: DataConfig) -> str:
    """Explain how the number of classes was found if no list of classes determines it, else ""."""
    if not isinstance(data, PixelLabels) or data.classes or data.label_map:
        return ""
    first = data.label_offset
    return (
        ": the largest value in the training labels determines it, counted from "
        f"data.label_offset {first}; if classes are missing in them, set data.classes to the list "
        "of all names, or data.label_offset to the value of the first class"
    )


def _with_steps(config: Config, images: int, progress: Progress) -> Config:
    """Convert `train.epochs` to `train.steps`, by which a run is resumed.

    Warns if the warm-up is longer than the run, or if the default number of steps, which is meant
    for larger data, was left unchanged and amounts to very many epochs.
    """
    train = config.train
    if train.epochs is not None:
        steps = max(1, math.ceil(train.epochs * images / train.batch_size))
        length = f"{counted(train.epochs, 'epoch')} of {counted(images, 'image')}"
        verb = "is" if train.epochs == 1 else "are"
        progress.print(f"{length} {verb} {counted(steps, 'step')}")
        train = train.model_copy(update={"steps": steps, "epochs": None})
    elif "steps" not in train.model_fields_set:
        epochs = train.steps * train.batch_size / images
        if epochs > MANY_EPOCHS:
            progress.warn(
                f"train.steps is {train.steps} (the default), which is {epochs:,.0f} epochs of "
                f"{counted(images, 'image')}; set train.steps or train.epochs"
            )
    if train.warmup_steps >= train.steps:
        progress.warn(
            f"train.warmup_steps is {train.warmup_steps}, but the run has "
            f"{counted(train.steps, 'step')}: the learning rate never reaches train.lr; lower it"
        )
    return config.model_copy(update={"train": train})


def check_best_metric(config: Config, info: DatasetInfo) -> None:
    """Check that the data has classes of the kind that `train.best_metric` measures.

    Raises:
        ConfigError: the metric is one of things or stuff, and the data has no such class.
    """
    metric = config.train.best_metric or ""
    kinds = {"things": len(info.things), "stuff": info.num_classes - len(info.things)}
    for kind, count in kinds.items():
        if metric.endswith(f"_{kind}") and not count:
            raise ConfigError(
                f"train.best_metric is {metric}, but none of the data set's classes are {kind}"
            )
