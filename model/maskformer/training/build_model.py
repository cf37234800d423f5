"""The model of a training run, with the weights that it starts from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from maskformer.config.load import changed_values
from maskformer.config.schema import Config, TrainConfig
from maskformer.data.class_change import class_change
from maskformer.errors import CheckpointError, ConfigError
from maskformer.modeling.base import SegmentationModel, build_model, check_size
from maskformer.modeling.batch_norm import warn_of_single_images
from maskformer.modeling.frozen_norm import join_norms
from maskformer.output.console import Progress
from maskformer.training.checkpoints.contents import known_classes, load_recipe, resolve_checkpoint
from maskformer.training.checkpoints.resuming import count_processes
from maskformer.training.data import TrainingData
from maskformer.weights import WeightsMismatchError

KEYS_WITHOUT_EFFECT_ON_LEARNING = (
    "train.workers",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
    "train.best_metric",
    "train.patience",
    "train.trackers",
    "train.log_folder",
    "train.verify_kernels",
    "train.process_timeout",
    "eval.",
    "predict.",
    "data.root",
    "data.val.",
    "data.val_images",
    "data.test_short_side",
    "data.test_max_side",
    "data.max_pixels",
    "data.colors",
    "model.backbone.pretrained",
    "model.backbone.weights",
)
"""Keys of a recipe that may change when a run is resumed without changing what the model learns.
They may change how it is scored.
"""
OTHER_ARCHITECTURE = (
    "the model section of the recipe, or of its base, describes another architecture: remove it, "
    "and that of the weights is used (base: _small has such a section, base: _r50 has none)"
)
OTHER_MODEL = (
    "a run can only be resumed with the model that it started with: restore the model section "
    "from the recipe.yaml in the run folder, or start a new run with another --output"
)


def build_training_model(
    config: Config,
    weights: Path | None,
    checkpoint: Path | None,
    data: TrainingData,
    progress: Progress,
    model_class: type[SegmentationModel],
) -> SegmentationModel:
    """Build the model and load the weights to start from, or those of the run to resume."""
    check_size(config.model)
    model = build_model(config.model, model_class)
    passes = data.accelerator.num_processes * config.train.accumulate
    if warning := warn_of_single_images(model, config.train.batch_size // passes):
        progress.warn(warning)
    backbone = config.model.backbone
    if checkpoint is None and weights is not None:
        _load_initial_weights(model, weights, data, progress)
    elif checkpoint is None and (backbone.pretrained or backbone.weights):
        model.load_backbone_weights(backbone.weights)
    _freeze(model, config.train, progress)
    join_norms(model.backbone)
    if checkpoint is not None:
        _compare_classes(checkpoint, data, progress, resume=True)
        _compare_recipes(checkpoint, config, data.accelerator, progress)
        with _advising(OTHER_MODEL):
            model.load_weights(checkpoint, warn=progress.warn)
    return model


def _load_initial_weights(
    model: SegmentationModel, weights: Path, data: TrainingData, progress: Progress
) -> None:
    """Load the weights of --weights. Entries of another shape are skipped, such as class heads,
    because fine-tuning on other classes is the usual reason to use it.
    """
    source = resolve_checkpoint(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # printed below, once for all processes
        with _advising(OTHER_ARCHITECTURE):
            report = model.load_weights(source, ignore_mismatched_sizes=True, warn=progress.warn)
    if report.mismatched:
        progress.print(report.summary)
    order = _compare_classes(source, data, progress, resume=False)
    if order is not None:
        model.reorder_classes(order)


@contextmanager
def _advising(advice: str) -> Iterator[None]:
    """Replace the advice of `WeightsMismatchError`, which is about Python arguments, by one about
    the recipe.
    """
    try:
        yield
    except WeightsMismatchError as error:
        raise WeightsMismatchError(error.report, advice) from None


def _compare_classes(
    source: Path, data: TrainingData, progress: Progress, *, resume: bool
) -> tuple[int, ...] | None:
    """Compare the classes of a checkpoint with those of the data.

    Weights belong to the index of a class. If names moved to other indices, training would start
    from the weights of the wrong classes.

    Returns:
        The index of each class in the checkpoint if its weights can be reordered, else None.
    """
    change = class_change(known_classes(source), data.info.classes)
    if change is None or not (resume or change.same_count):
        return None  # another number of classes: the head is not loaded, which was printed
    if resume and (change.reordered or not change.same_count):
        raise CheckpointError(
            f"cannot resume from {source} with other classes: {change.text}; restore "
            "data.classes, or start a new run with --weights"
        )
    what = "Weights follow the index of a class, not its name"
    if change.order is not None:
        what = "The weights of each class follow its name"
    progress.warn(f"the classes of {source} are not those of the data: {change.text}. {what}")
    return change.order


def _compare_recipes(
    checkpoint: Path, config: Config, accelerator: Accelerator, progress: Progress
) -> None:
    """Report the recipe keys, and the number of processes, that changed since the checkpoint."""
    try:
        before = load_recipe(checkpoint, [])
    except (ConfigError, CheckpointError):  # written by another version, or missing
        return
    changes = changed_values(before, config)
    processes = count_processes(checkpoint), accelerator.num_processes
    if processes[0] != processes[1]:
        changes["processes"] = processes
    if not changes:
        return
    text = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items())
    if all(name.startswith(KEYS_WITHOUT_EFFECT_ON_LEARNING) for name in changes):
        progress.print(f"resumed with {text}")
    else:
        progress.warn(f"resumed with {text}: the results will not be those of an uninterrupted run")


def _freeze(model: SegmentationModel, train: TrainConfig, progress: Progress) -> None:
    if train.freeze:
        model.freeze(train.freeze)
        counts = [p.numel() for p in model.parameters() if not p.requires_grad]
        total = sum(p.numel() for p in model.parameters())
        progress.print(
            f"frozen: {', '.join(train.freeze)} ({sum(counts):,} of {total:,} parameters)"
        )
