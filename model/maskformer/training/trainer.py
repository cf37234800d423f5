"""Training: a loop whose every state can be saved, resumed and explained."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

import mfkernels
from maskformer.config.schema import Config, TrainConfig, changed_values, to_yaml
from maskformer.data import (
    Batch,
    Normalize,
    TrainLoader,
    TrainTransform,
    build_dataset,
    check_dataset,
)
from maskformer.data.class_change import class_change
from maskformer.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    TrainingDivergedError,
    TrainingStoppedError,
    WorkerError,
)
from maskformer.evaluation.evaluate import (
    Evaluation,
    eval_loader,
    evaluate,
    metrics_to_json,
    write_pictures,
)
from maskformer.modeling.criterion import build_criterion
from maskformer.modeling.maskformer import SegmentationModel, build_model, check_size
from maskformer.output.console import Progress, peak_memory
from maskformer.output.output_folder import check_output_folder
from maskformer.output.protected_inputs import check_output_beside_data
from maskformer.system.signals import Interrupted, Signals
from maskformer.system.writing import write_text
from maskformer.training.optimizer import build_optimizer, build_scheduler, load_optimizer_state
from maskformer.training.run_checkpoint import (
    RECIPE,
    check_room,
    checkpoint_size,
    checkpoint_to_resume,
    count_processes,
    find_checkpoint,
    known_classes,
    load_recipe,
    load_training_state,
    mark_best,
    resolve_checkpoint,
    save_checkpoint,
    save_weights,
    was_evaluated,
)
from maskformer.training.run_folder import (
    check_not_in_use,
    check_run_folder,
    is_run,
    lock_run,
    mark_run,
    remove_leftovers,
    remove_run,
)
from maskformer.training.tensorboard import Board
from mfkernels.backend import Request as Backend

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
AGREE_STEPS, AGREE_SECONDS = 10, 2.0
"""At most so far apart, processes that train together ask each other whether a signal came."""
UNCHANGED_LEARNING = (
    "train.workers",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "eval.",
    "data.root",
)
"""Values of a recipe that a resumed run may replace and still learn the very same."""


class Trainer:
    """Trains the model of a recipe in a run folder.

    Args:
        config: the recipe.
        output: the run folder; it receives `recipe.yaml`, `checkpoints/`, `tensorboard/`,
            `predictions/` and `metrics.json`.
        resume: continue the run in `output` from its last checkpoint.
        overwrite: `fit` replaces the run that `output` may hold.
        weights: a run, or any checkpoint that `from_pretrained` reads, whose weights training
            starts from; what another number of classes makes unusable starts anew, with a warning.
        backend: backend of the mfkernels operations, see `mfkernels.use_backend`.
        cpu: use the CPU even if there is a GPU.

    Raises:
        FileExistsError: `output` already holds a run, and `resume` and `overwrite` are off, or
            files in the way that are no run's.
        RunInUseError: another process trains in `output`.
        ValueError: `output` is or holds data of the recipe.
        NotADirectoryError, PermissionError: `output` cannot be written.
        CheckpointError: nothing to resume from, an unreadable checkpoint, one of a data set with
            other classes, or no ImageNet weights.
        DatasetError: data that cannot be trained on.
    """

    def __init__(
        self,
        config: Config,
        output: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        weights: Path | None = None,
        backend: Backend = "auto",
        cpu: bool = False,
    ) -> None:
        self.output = output
        self.checkpoints = output / "checkpoints"
        self.overwrite = overwrite
        check_output_folder(output)
        check_run_folder(output, resume=resume, overwrite=overwrite)
        check_not_in_use(output)
        notes: list[str] = []
        checkpoint = checkpoint_to_resume(output, notes.append) if resume else None
        self.accelerator = _start_accelerate(config.train, cpu)
        self.backend = backend
        self.progress = Progress(enabled=self.accelerator.is_main_process)
        for note in notes:
            self.progress.warn(note)
        set_seed(config.train.seed)
        self.train_data = build_dataset(config.data, "train")
        self.val_data = build_dataset(config.data, "val")
        check_output_beside_data(output, config.data, self.train_data, self.val_data)
        if self.accelerator.is_main_process:
            for split, dataset in (("train", self.train_data), ("val", self.val_data)):
                for warning in check_dataset(dataset, title=f"Checking {split} data"):
                    self.progress.warn(f"{split} data: {warning}")
        self.accelerator.wait_for_everyone()
        self.info = self.train_data.info
        if self.val_data.info.classes != self.info.classes:
            raise DatasetError("the train and the val data do not have the same list of classes")
        self.config = _with_classes(config, len(self.info.classes))
        self.step = 0
        self.saved_step: int | None = None

        check_size(self.config.model)
        model = build_model(self.config.model)
        backbone = self.config.model.backbone
        if weights is not None:
            # Another number of classes is the usual reason to start from a checkpoint.
            source = resolve_checkpoint(weights)
            model.load_weights(source, ignore_mismatched_sizes=True)
            self._compare_classes(known_classes(source), source)
        elif not resume and (backbone.pretrained or backbone.weights):
            model.load_backbone_weights(backbone.weights)
        self.optimizer = build_optimizer(model, self.config.train)
        self.evaluation_due = False
        if checkpoint is not None:
            self._compare_classes(known_classes(checkpoint), checkpoint, resume=True)
            self._compare_recipes(checkpoint)
            model.load_weights(checkpoint)
            self.evaluation_due = not was_evaluated(checkpoint)
        self.criterion = build_criterion(self.config).to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        set_seed(self.config.train.seed, device_specific=True)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.scheduler = build_scheduler(_plain(self.optimizer), self.config.train, self.step)
        self.board = Board(output / "tensorboard", self.progress.warn)
        # Several processes also get SIGTERM from their launcher, when one of them has failed.
        self.signals = Signals(verbose=self.accelerator.num_processes == 1)
        self._next_agreement = 0
        self._agreed = (self.step, time.monotonic())
        self.unsaved = False
        self.score: float | None = None
        self.skipped = torch.zeros((), device=self.accelerator.device)
        self.trained_images, self.trained_seconds = 0, 0.0

    @property
    def bare_model(self) -> SegmentationModel:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def fit(self) -> dict[str, float]:
        """Trains to the last step of the recipe, evaluates, and returns the metrics of the final
        model.

        Raises:
            TrainingStoppedError: a signal came; the last finished step was saved.
            TrainingDivergedError: gradients stopped being finite.
            CheckpointError: the last checkpoint could not be written.
            DatasetError, WorkerError: no batch could be had; the last finished step was saved.
            DiskFullError: there is no room for a checkpoint; nothing was trained.
            RunInUseError: another process trains in the run folder.
        """
        with lock_run(self.output) if self.accelerator.is_main_process else nullcontext("") as why:
            if why:
                self.progress.warn(f"{self.output} cannot be locked against other runs: {why}")
            return self._fit()

    def _fit(self) -> dict[str, float]:
        train = self.config.train
        loader = TrainLoader(
            self.train_data,
            TrainTransform(self.config.data.augmentation),
            train.batch_size,
            train.seed,
            start_step=self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            workers=train.workers,
            accumulate=train.accumulate,
            normalize=Normalize.from_config(self.config.model),
            pin_memory=self.accelerator.device.type == "cuda",
            warn=self.progress.warn,
        )
        if self.accelerator.is_main_process:
            needed = checkpoint_size(self.bare_model)
            if warning := check_room(self.output, needed, overwrite=self.overwrite):
                self.progress.warn(warning)
            if self.overwrite and is_run(self.output):
                remove_run(self.output)
            remove_leftovers(self.output)
            mark_run(self.output)
            write_text(self.output / RECIPE, to_yaml(self.config))
        with (
            self.signals,
            mfkernels.use_backend(self.backend),
            self.board.open(),
            self.progress.training(self.step, train.steps),
        ):
            return self._loop(iter(loader))

    def _loop(self, batches: Iterator[Batch]) -> dict[str, float]:
        train = self.config.train
        due = self.step % train.evaluate_every == 0 and 0 < self.step < train.steps
        if self.evaluation_due and due:
            self._evaluate()  # something ended it before the run was resumed
        window = _Window(self.accelerator.device)
        while self.step < train.steps:
            self._train_step(self._wait_for_batches(batches, window), window)
            self.step += 1
            self.progress.advance(self.step)
            done = self.step == train.steps
            if done or self.step % train.log_every == 0:
                self._log(window)
                self.trained_images += window.images * self.accelerator.num_processes
                self.trained_seconds += window.seconds
                window = _Window(self.accelerator.device)
            with window.clock_stopped():
                due = done or self.step % train.evaluate_every == 0
                stop, save = self._agree_on_signals(now=due)
                # Before an evaluation, which may take long: whatever ends it, the step is saved.
                if stop or save or due or self.step % train.checkpoint_every == 0:
                    self._save(required=stop, again=done and not stop)
                if stop:
                    raise self._stopped()
                if due and not done:
                    self._evaluate()
        with self._saved_in_the_end():
            return self._finish(self._evaluate())

    @contextmanager
    def _saved_in_the_end(self) -> Iterator[None]:
        """Whatever comes of the last evaluation: a model that found no room gets another chance."""
        try:
            yield
        finally:
            if self.unsaved:
                self._save(required=True)
                if self.score is not None:
                    mark_best(self.checkpoints, self.step, self.score)

    def _wait_for_batches(self, batches: Iterator[Batch], window: _Window) -> list[Batch]:
        """All batches of a step, before it changes anything: what goes wrong in this wait, a signal
        or a sample that cannot be used, costs none of the steps before.
        """
        start = time.perf_counter()
        # Other processes may have got their batches: they would not come to save together.
        alone = self.accelerator.num_processes == 1
        try:
            with self.signals.interruptible(alone):
                parts = [next(batches) for _ in range(self.config.train.accumulate)]
        except Interrupted:
            raise self._stopped() from None
        except (DatasetError, WorkerError) as error:
            if self.step == 0 or not alone:
                raise
            raise self._with_advice(error) from error
        window.waited += time.perf_counter() - start
        return parts

    def _train_step(self, parts: list[Batch], window: _Window) -> None:
        self.model.train()
        for part in parts:
            batch = part.to(self.accelerator.device, non_blocking=True)
            with self.accelerator.accumulate(self.model):
                losses = self.criterion(self.model(batch.pixel_values), batch.targets)
                loss = self.criterion.total(losses)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), self.config.train.clip_norm
                    )
                    self._update(norm)
                    window.add_norm(norm)
            window.add_losses(losses, loss, len(batch.names))
        window.steps += 1

    def _update(self, norm: Tensor) -> None:
        """One optimiser step, which the fused kernel itself leaves out when the gradient is not
        finite.
        """
        if self.config.train.precision != "fp16":  # there the loss scaler does the same
            bad = (~torch.isfinite(norm)).float()
            self.skipped += bad
            _plain(self.optimizer).found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def _log(self, window: _Window) -> None:
        values = window.summary(self.accelerator.num_processes)
        values["lr"] = float(self.scheduler.get_last_lr()[0])
        values["skipped_steps"] = self.skipped.item()
        if isinstance(self.criterion, mfkernels.MaskFormerCriterion):
            values["bad_costs"] = self.criterion.bad_costs.item()
        self._record("train", values)
        self.progress.log(self.step, values)
        if window.steps > 1 and window.all_norms_bad():
            raise TrainingDivergedError(
                f"no finite gradient in the {window.steps} steps before step {self.step}; all were "
                f"skipped. The last checkpoint is {find_checkpoint(self.checkpoints)}. "
                "Lower train.lr or train in bf16."
            )

    def _evaluate(self) -> Evaluation:
        loader = eval_loader(
            self.val_data,
            self.config,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            warn=self.progress.warn,
        )
        # One process alone must not leave the others waiting for its figures.
        alone = self.accelerator.num_processes == 1
        try:
            with self.signals.interruptible(alone):
                evaluation = evaluate(
                    self.bare_model,
                    loader,
                    self.info,
                    self.config.eval,
                    self.accelerator.device,
                    self.progress,
                    between_batches=self._stop_evaluation if alone else None,
                )
        except Interrupted:
            raise self._stopped() from None
        except (DatasetError, WorkerError) as error:
            if not alone:
                raise
            raise self._with_advice(error) from error
        self.score = evaluation.score
        self._record("val", evaluation.metrics, evaluation)
        scores = [name for name in ("miou", "pq") if name in evaluation.metrics]
        figures = "  ".join(f"val {name} {evaluation.metrics[name]:.4f}" for name in scores)
        self.progress.print(f"step {self.step}/{self.config.train.steps}  {figures}")
        if self.accelerator.is_main_process:
            try:
                mark_best(self.checkpoints, self.step, evaluation.score)
            except CheckpointError as error:
                self.progress.warn(f"{error} Training goes on.")
        return evaluation

    def _stop_evaluation(self) -> None:
        if self.signals.stop:
            raise self._stopped()

    def _record(
        self, prefix: str, values: dict[str, float], evaluation: Evaluation | None = None
    ) -> None:
        """Writes figures and pictures where people look; what fails there does not end training."""
        if not self.accelerator.is_main_process:
            return
        self.board.add(prefix, values, self.step, evaluation.pictures if evaluation else None)
        if evaluation is not None:
            try:
                mark_run(self.output, write_pictures(evaluation, self.output / "predictions"))
            except (OSError, ValueError) as error:
                self.progress.warn(f"no pictures of step {self.step}: {error}")

    def _save(self, *, required: bool, again: bool = False) -> None:
        """Saves the run.

        Args:
            required: a disk that refuses ends training; at least the weights are kept somewhere.
            again: it will be tried again after the evaluation.
        """
        asked_for, self.signals.save = self.signals.save, False
        try:
            save_checkpoint(
                self.checkpoints,
                self.step,
                self.bare_model,
                self._state(),
                self.config,
                self.info,
                self.accelerator,
            )
            self.unsaved = False
        except CheckpointError as error:
            if again and self.accelerator.num_processes == 1:
                self.unsaved = True
                self.progress.warn(f"{error} It is tried again after the evaluation.")
            elif required or again:
                raise CheckpointError(f"{error} {self._save_weights()}") from error
            else:
                self.progress.warn(f"{error} Training goes on.")
            return
        self.saved_step = self.step
        if asked_for:
            self.progress.print(f"saved step {self.step}/{self.config.train.steps} (SIGUSR2)")

    def _save_if_missing(self) -> None:
        """The last chance: no process may still be in the middle of a step."""
        if self.saved_step != self.step and not self.unsaved:
            self._save(required=True)

    def _save_weights(self) -> str:
        """The last resort; tells what to do next."""
        try:
            folder = save_weights(self.output, self.step, self.bare_model, self.config, self.info)
        except CheckpointError as error:
            return f"{error} Free room on the disk, then {self._how_to_resume()}"
        return (
            f"The model of step {self.step}, without the training state, is in {folder}: evaluate "
            "and predict take it with --checkpoint, a new run with --weights. Free room on the "
            "disk before the next run"
        )

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _restore(self, checkpoint: Path) -> None:
        state = load_training_state(checkpoint, self.accelerator.process_index)
        try:
            self.step = int(state["step"])
            load_optimizer_state(_plain(self.optimizer), state["optimizer"])
            self.saved_step = self.step
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"cannot resume from {checkpoint}: {error}") from error
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _finish(self, evaluation: Evaluation) -> dict[str, float]:
        metrics = dict(evaluation.metrics)
        metrics["step"] = self.step
        metrics["train_images_per_second"] = (
            self.trained_images / self.trained_seconds if self.trained_images else math.nan
        )
        metrics["peak_memory_mb"] = peak_memory(self.accelerator.device) / 1e6
        if self.accelerator.is_main_process:
            write_text(self.output / "metrics.json", metrics_to_json(metrics))
        return metrics

    def _compare_classes(
        self, known: tuple[str, ...] | None, source: Path, *, resume: bool = False
    ) -> None:
        """Weights know classes by index: names that moved would be learnt anew, one as another."""
        change = class_change(known, self.info.classes)
        if change is None or not (resume or change.same_count):
            return  # weights of another number of classes: their head starts anew, which is said
        if resume and (change.reordered or not change.same_count):
            raise CheckpointError(
                f"cannot resume from {source} with other classes: {change.text}; restore "
                "data.classes, or start a new run with --weights"
            )
        self.progress.warn(
            f"the classes of {source} are not those of the data: {change.text}. "
            "Weights follow the index of a class, not its name"
        )

    def _compare_recipes(self, checkpoint: Path) -> None:
        """Says what a resumed run does not do as before."""
        try:
            before = load_recipe(checkpoint, [])
        except (ConfigError, CheckpointError):  # of another version, or lost
            return
        changes = changed_values(before, self.config)
        processes = count_processes(checkpoint), self.accelerator.num_processes
        if processes[0] != processes[1]:
            changes["processes"] = processes
        if not changes:
            return
        text = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items())
        if all(name.startswith(UNCHANGED_LEARNING) for name in changes):
            self.progress.print(f"resumed with {text}")
        else:
            self.progress.warn(
                f"resumed with {text}: the results will not be those of an uninterrupted run"
            )

    def _agree_on_signals(self, *, now: bool) -> tuple[bool, bool]:
        """Whether to stop and whether to save. Several processes ask each other every few steps or
        `now`; what came to one of them counts for none before that.
        """
        if self.accelerator.num_processes == 1:
            return self.signals.stop != 0, self.signals.save
        if not (now or self.step >= self._next_agreement):
            return False, False
        step, start = self._agreed
        self._agreed = self.step, time.monotonic()
        pace = (self._agreed[1] - start) / max(self.step - step, 1)
        wishes = [self.signals.stop, float(self.signals.save), pace]
        mine = torch.tensor([wishes], device=self.accelerator.device)
        stop, save, slowest = self.accelerator.gather(mine).amax(dim=0).tolist()
        self.signals.stop, self.signals.save = int(stop), bool(save)
        self._next_agreement = self.step + max(
            1, min(AGREE_STEPS, int(AGREE_SECONDS / max(slowest, 1e-3)))
        )
        return self.signals.stop != 0, self.signals.save

    def _stopped(self) -> TrainingStoppedError:
        self._save_if_missing()
        return TrainingStoppedError(
            self.signals.stop,
            f"stopped at step {self.step}/{self.config.train.steps}; the checkpoint is complete. "
            f"Continue with: {self._how_to_resume()}",
        )

    def _with_advice(self, error: DatasetError | WorkerError) -> DatasetError | WorkerError:
        self._save_if_missing()
        kind = WorkerError if isinstance(error, WorkerError) else DatasetError
        remedy = "then" if kind is WorkerError else "mend the data, then"
        return kind(f"{error}\nStep {self.step} is saved; {remedy} {self._how_to_resume()}")

    def _how_to_resume(self) -> str:
        return f"maskformer train --resume --output {shlex.quote(str(self.output))}"


class _Window:
    """What happened since the last log line; sums stay on the device until they are printed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self.images = 0
        self.passes = 0
        self.sums: dict[str, Tensor] = {}
        self.norms: list[Tensor] = []

    def add_losses(self, losses: dict[str, Tensor], total: Tensor, images: int) -> None:
        self.images += images
        self.passes += 1
        for name, value in {"loss": total, **losses}.items():
            previous = self.sums.get(name)
            value = value.detach()
            self.sums[name] = value if previous is None else previous + value

    def add_norm(self, norm: Tensor) -> None:
        self.norms.append(norm.detach())

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Keeps evaluations and checkpoints out of the throughput."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def all_norms_bad(self) -> bool:
        return not bool(torch.isfinite(torch.stack(self.norms)).any())

    def summary(self, processes: int) -> dict[str, float]:
        names = list(self.sums)
        means = torch.stack([self.sums[name] for name in names]).div(self.passes).tolist()
        values = dict(zip(names, means, strict=True))
        values["grad_norm"] = torch.stack(self.norms).mean().item()
        values["images_per_second"] = self.images * processes / self.seconds
        values["data_wait"] = self.waited / self.seconds
        values["peak_memory_mb"] = peak_memory(self.device) / 1e6
        return values


def _start_accelerate(train: TrainConfig, cpu: bool) -> Accelerator:
    try:
        return Accelerator(
            mixed_precision=PRECISION[train.precision],
            gradient_accumulation_steps=train.accumulate,
            cpu=cpu,
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:  # a precision that the device does not have
        raise ConfigError(f"train.precision: {error}") from error


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _with_classes(config: Config, count: int) -> Config:
    """Fills in the number of classes, or refuses one that contradicts the data."""
    wanted = config.model.num_classes
    if wanted not in (None, count):
        raise ConfigError(
            f"model.num_classes is {wanted}, but the data set has {count} classes; "
            "leave it out to take the data set's"
        )
    return config.model_copy(
        update={"model": config.model.model_copy(update={"num_classes": count})}
    )
