"""Building the parts of a training run from a recipe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskformer.config.choices import Backend
from maskformer.config.load import changed_values
from maskformer.config.schema import Config, DataConfig, PixelLabels, TrainConfig
from maskformer.data import DatasetInfo, build_dataset, check_splits
from maskformer.data.class_change import check_same_classes, class_change
from maskformer.data.inspection.checks import check_objects
from maskformer.errors import CheckpointError, ConfigError
from maskformer.evaluation.measures import check_measures
from maskformer.modeling.autocast import enable_autocast
from maskformer.modeling.base import SegmentationModel, build_model, check_size
from maskformer.modeling.batch_norm import warn_of_single_images
from maskformer.modeling.criterion import build_criterion
from maskformer.modeling.frozen_norm import join_norms
from maskformer.output.console import Progress
from maskformer.output.output_folder import check_output_folder
from maskformer.output.protected_inputs import check_output_beside_data, check_output_beside_model
from maskformer.system.folder_lock import check_not_in_use
from maskformer.system.listing import count_names
from maskformer.system.process_group import join_processes
from maskformer.system.signals import Signals
from maskformer.system.text import counted
from maskformer.training.checkpointer import Checkpointer
from maskformer.training.checkpoints.contents import known_classes, load_recipe, resolve_checkpoint
from maskformer.training.checkpoints.resuming import (
    checkpoint_to_resume,
    count_processes,
    was_evaluated,
)
from maskformer.training.data import TrainingData
from maskformer.training.evaluator import Evaluator
from maskformer.training.log_folder import check_log_folder, find_log_folder
from maskformer.training.optimizer import build_optimizer, build_scheduler
from maskformer.training.recorders.trackers import check_trackers
from maskformer.training.reporter import Reporter
from maskformer.training.run_folder import (
    check_run_folder,
    is_run,
    other_files,
)
from maskformer.training.sharding import Shards
from maskformer.training.signal_agreement import SignalAgreement
from maskformer.training.speed import (
    DTYPE,
    PRECISION,
    choose_memory_format,
    choose_precision,
    compile_regions,
    convert_memory_format,
    describe,
    is_sharded,
)
from maskformer.training.trainer import TrainingParts
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
MANY_EPOCHS = 1000
OTHER_ARCHITECTURE = (
    "the model section of the recipe, or of its base, describes another architecture: remove it, "
    "and that of the weights is used (base: _small has such a section, base: _r50 has none)"
)
OTHER_MODEL = (
    "a run can only be resumed with the model that it started with: restore the model section "
    "from the recipe.yaml in the run folder, or start a new run with another --output"
)


def build_training(
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    weights: Path | None = None,
    backend: Backend = "auto",
    cpu: bool = False,
    model_class: type[SegmentationModel] = SegmentationModel,
) -> TrainingParts:
    """Build everything that `Trainer` needs. Nothing is written yet.

    Args:
        config: the recipe.
        output: the run folder; it receives `recipe.yaml`, `checkpoints/`, `tensorboard/`,
            `predictions/` and `metrics.json`.
        resume: continue the run in `output` from its last checkpoint.
        overwrite: replace a run that `output` already holds.
        weights: a run, or any checkpoint that `from_pretrained` reads, from whose weights training
            starts. Layers that do not fit because the number of classes differs keep their random
            initialisation, with a message. Ignored when a run is resumed.
        backend: the backend of the mfkernels operations, see `mfkernels.use_backend`.
        cpu: use the CPU even if there is a GPU.
        model_class: a subclass of the class of the recipe's architecture, of which the model is to
            be; such a run is resumed with it, too.

    Raises:
        FileExistsError: `output` already holds a run while `resume` and `overwrite` are False, or
            it holds files of another origin that a run would replace, or `train.log_folder` holds
            the curves of another run.
        RunInUseError: another process is using `output`.
        OutputError: `output` is or contains data of the recipe, or the model given as `weights`.
        NotADirectoryError, PermissionError: `output` cannot be written.
        CheckpointError: there is nothing to resume from, the checkpoint is unreadable or has other
            classes than the data set, or the ImageNet weights are not available.
        ConfigError: the recipe does not fit the data or the device.
        DatasetError: the data cannot be used for training.
        WeightsMismatchError: the weights belong to another architecture.
    """
    check_output_folder(output)
    check_run_folder(output, resume=resume, overwrite=overwrite)
    check_not_in_use(output)
    check_log_folder(output, config.train)
    weights = None if resume else weights
    # The weights may come from the run that is replaced: they are read before it is removed.
    if weights is not None and not is_run(output):
        check_output_beside_model(output, resolve_checkpoint(weights))
    notes: list[str] = []
    checkpoint = checkpoint_to_resume(output, notes.append) if resume else None
    log_folder = find_log_folder(output, config.train)
    accelerator = build_accelerator(config, cpu=cpu, log_folder=log_folder)
    _check_batch_size(config.train, accelerator.num_processes)
    progress = Progress(enabled=accelerator.is_main_process)
    for note in notes:
        progress.warn(note)
    if not is_run(output) and (others := other_files(output)):
        text = count_names(others, "other names")
        progress.warn(f"{output} is not a run and holds {text}: the run is written beside them")
    set_seed(config.train.seed)
    data = build_data(config, output, accelerator, progress)
    config = data.config
    config = config.model_copy(update={"train": choose_precision(config.train, accelerator.device)})
    model = _build_model(config, weights, checkpoint, data, progress, model_class)
    progress.print(_summary(data, model, output))
    layout = choose_memory_format(config.train, model)
    sharded = is_sharded(config.train, accelerator)
    if not sharded:  # FSDP2 shards contiguous parameters only
        convert_memory_format(model, layout)
    if config.train.compile:
        compile_regions(model)
    progress.print(f"running on {describe(accelerator, config.train, layout)}")
    criterion = build_criterion(config, data.info.classes).to(accelerator.device)
    # FSDP2 reduces gradients itself; evaluation mode keeps DistributedDataParallel out.
    prepared = accelerator.prepare_model(model, evaluation_mode=sharded)
    _keep_half_precision(accelerator, prepared, config.train)
    shards = Shards(model, accelerator.device) if sharded else None
    optimizer = accelerator.prepare_optimizer(build_optimizer(model, config.train))
    average = build_average(model, config.train)
    set_seed((config.train.seed + accelerator.process_index) % 2**32)

    # With several processes, the launcher also sends SIGTERM when one of them has failed.
    signals = Signals(verbose=accelerator.num_processes == 1)
    checkpointer = Checkpointer(
        output,
        config,
        data.info,
        accelerator,
        prepared,
        optimizer,
        signals,
        progress,
        overwrite=overwrite,
        average=average,
        shards=shards,
    )
    step = checkpointer.restore(checkpoint) if checkpoint is not None else 0
    return TrainingParts(
        train=config.train,
        accelerator=accelerator,
        data=data,
        model=prepared,
        criterion=criterion,
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer.optimizer, config.train, step),
        signals=SignalAgreement(signals, accelerator, step),
        checkpointer=checkpointer,
        evaluator=Evaluator(data, config, accelerator, signals, progress),
        reporter=Reporter(
            output,
            config.train.steps,
            accelerator,
            progress,
            config=config,
            info=data.info,
            epoch_steps=len(data.train) / config.train.batch_size,
        ),
        step=step,
        evaluation_due=checkpoint is not None and not was_evaluated(checkpoint),
        backend=backend,
        average=average,
        layout=layout,
        shards=shards,
    )


def build_accelerator(
    config: Config, *, cpu: bool = False, log_folder: Path | None = None
) -> Accelerator:
    """Build the accelerator, which holds the device, precision, processes and trackers.

    Args:
        config: the recipe.
        cpu: use the CPU even if there is a GPU.
        log_folder: where trackers that write local files put them.

    Raises:
        ConfigError: the device does not support the precision, or a tracker's package is missing.
        UsageError: the processes that a launcher started cannot train together.
    """
    trackers = check_trackers(config.train.trackers)
    state = join_processes(cpu=cpu, timeout=config.train.process_timeout)
    train = choose_precision(config.train, state.device)
    if train.precision == "fp16" and state.device.type == "cpu":
        raise ConfigError("train.precision is fp16, which needs a GPU; expected bf16 or fp32")
    # Buffers change during training only if BatchNorm is not frozen.
    buffers = DistributedDataParallelKwargs(broadcast_buffers=not config.model.backbone.frozen_norm)
    # An earlier run in this process may have used another precision.
    if AcceleratorState._shared_state.get("_mixed_precision") != PRECISION[train.precision]:
        AcceleratorState._reset_state()
    try:
        return Accelerator(
            log_with=trackers or None,
            project_dir=log_folder or Path() if trackers else None,
            mixed_precision=PRECISION[train.precision],
            gradient_accumulation_steps=train.accumulate,
            cpu=state.device.type == "cpu",
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[buffers],
        )
    except ValueError as error:
        raise ConfigError(f"train.precision: {error}") from error


def _keep_half_precision(accelerator: Accelerator, prepared: nn.Module, train: TrainConfig) -> None:
    """Replace accelerate's autocast, which converts the outputs to float32, by one that does not:
    the criterion accepts half precision, which takes half the time and memory.
    """
    if train.precision != "fp32":
        model = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        enable_autocast(model, DTYPE[train.precision])


def _check_batch_size(train: TrainConfig, processes: int) -> None:
    """Check the batch size as the loader does, but before the data is read.

    Raises:
        ConfigError: `train.batch_size` is not a multiple of processes times `train.accumulate`.
    """
    parts = processes * train.accumulate
    if train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size is {train.batch_size}, expected a multiple of {parts}: processes "
            f"({processes}) times train.accumulate ({train.accumulate})"
        )


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


def _summary(data: TrainingData, model: SegmentationModel, output: Path) -> str:
    """Describe the data, the model and the run folder in one line."""
    images = f"training on {counted(len(data.train), 'image')}, validating on {len(data.val)}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = f"{data.info.num_classes} classes, {parameters:,} parameters"
    return f"{images}, {sizes}; the run is in {output}"


def _freeze(model: SegmentationModel, train: TrainConfig, progress: Progress) -> None:
    if train.freeze:
        model.freeze(train.freeze)
        counts = [p.numel() for p in model.parameters() if not p.requires_grad]
        total = sum(p.numel() for p in model.parameters())
        progress.print(
            f"frozen: {', '.join(train.freeze)} ({sum(counts):,} of {total:,} parameters)"
        )


def build_average(model: SegmentationModel, train: TrainConfig) -> AveragedModel | None:
    """Build the exponential moving average of the weights if `train.ema` is set. Its buffers are
    copies of the model's.
    """
    if train.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema))


def _build_model(
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
