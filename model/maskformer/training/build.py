"""Building the parts of a training run from a recipe."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskformer.config.choices import Backend
from maskformer.config.schema import Config, TrainConfig
from maskformer.errors import ConfigError
from maskformer.modeling.autocast import enable_autocast
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.criterion import build_criterion
from maskformer.output.console import Progress
from maskformer.output.output_folder import check_output_folder
from maskformer.output.protected_inputs import check_output_beside_model
from maskformer.system.folder_lock import check_not_in_use
from maskformer.system.listing import count_names
from maskformer.system.process_group import join_processes
from maskformer.system.signals import Signals
from maskformer.system.text import counted
from maskformer.training.build_data import build_data
from maskformer.training.build_model import build_training_model
from maskformer.training.checkpointer import Checkpointer
from maskformer.training.checkpoints.contents import resolve_checkpoint
from maskformer.training.checkpoints.resuming import checkpoint_to_resume, was_evaluated
from maskformer.training.data import TrainingData
from maskformer.training.evaluator import Evaluator
from maskformer.training.log_folder import check_log_folder, find_log_folder
from maskformer.training.optimizer import build_optimizer, build_scheduler
from maskformer.training.recorders.trackers import check_trackers
from maskformer.training.reporter import Reporter
from maskformer.training.run_folder import check_run_folder, is_run, other_files
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
    model = build_training_model(config, weights, checkpoint, data, progress, model_class)
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


def _summary(data: TrainingData, model: SegmentationModel, output: Path) -> str:
    """Describe the data, the model and the run folder in one line."""
    images = f"training on {counted(len(data.train), 'image')}, validating on {len(data.val)}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = f"{data.info.num_classes} classes, {parameters:,} parameters"
    return f"{images}, {sizes}; the run is in {output}"


def build_average(model: SegmentationModel, train: TrainConfig) -> AveragedModel | None:
    """Build the exponential moving average of the weights if `train.ema` is set. Its buffers are
    copies of the model's.
    """
    if train.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema))
