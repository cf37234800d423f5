"""Training: a loop whose every state can be saved, resumed and explained."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import mfkernels
from maskformer.checkpoint import (
    RECIPE,
    CheckpointError,
    checkpoint_to_resume,
    find_checkpoint,
    load_training_state,
    mark_best,
    resolve_checkpoint,
    save_checkpoint,
)
from maskformer.config import Config, to_yaml
from maskformer.criterion import build_criterion
from maskformer.data import (
    Batch,
    DatasetError,
    Normalize,
    TrainLoader,
    TrainTransform,
    build_dataset,
    check_dataset,
)
from maskformer.evaluation import (
    Evaluation,
    eval_loader,
    evaluate,
    metrics_to_json,
    write_pictures,
)
from maskformer.model import SegmentationModel, build_model, check_size
from maskformer.optimization import build_optimizer, build_scheduler, load_optimizer_state
from maskformer.output import check_output_folder
from maskformer.progress import Progress, peak_memory
from mfkernels.backend import Request as Backend

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
STOP_CHECK_EVERY = 10
"""Steps between agreements on a stop signal, when several processes train together."""


class TrainingStoppedError(RuntimeError):
    """SIGINT or SIGTERM ended the run after a complete, saved step."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class TrainingDivergedError(RuntimeError):
    """No finite gradient came out of a whole logging interval."""


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
        FileExistsError: `output` already holds a run, and `resume` and `overwrite` are off.
        NotADirectoryError, PermissionError: `output` cannot be written.
        CheckpointError: nothing to resume from, an unreadable checkpoint, or no ImageNet weights.
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
        if not (resume or overwrite) and (output / RECIPE).exists():
            raise FileExistsError(
                f"{output} already holds a run: continue it with --resume, replace it with "
                "--overwrite, or choose another --output"
            )
        checkpoint = checkpoint_to_resume(output) if resume else None
        self.accelerator = Accelerator(
            mixed_precision=PRECISION[config.train.precision],
            gradient_accumulation_steps=config.train.accumulate,
            cpu=cpu,
            step_scheduler_with_optimizer=False,
        )
        self.backend = backend
        self.progress = Progress(enabled=self.accelerator.is_main_process)
        set_seed(config.train.seed)
        self.train_data = build_dataset(config.data, "train")
        self.val_data = build_dataset(config.data, "val")
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

        check_size(self.config.model)
        model = build_model(self.config.model)
        backbone = self.config.model.backbone
        if weights is not None:
            # Another number of classes is the usual reason to start from a checkpoint.
            model.load_weights(resolve_checkpoint(weights), ignore_mismatched_sizes=True)
        elif not resume and (backbone.pretrained or backbone.weights):
            try:
                model.load_backbone_weights(backbone.weights)
            except RuntimeError as error:
                raise CheckpointError(str(error)) from error
        self.optimizer = build_optimizer(model, self.config.train)
        if checkpoint is not None:
            model.load_weights(checkpoint)
        self.criterion = build_criterion(self.config).to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        set_seed(self.config.train.seed, device_specific=True)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.scheduler = build_scheduler(_plain(self.optimizer), self.config.train, self.step)
        self.stop_signal = 0
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
            TrainingStoppedError: a signal came; the step was finished and saved.
            TrainingDivergedError: gradients stopped being finite.
            CheckpointError: the last checkpoint could not be written.
        """
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
        )
        self.board: SummaryWriter | None = None
        if self.accelerator.is_main_process:
            if self.overwrite:
                remove_run(self.output)
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / RECIPE).write_text(to_yaml(self.config), encoding="utf-8")
            self.board = SummaryWriter(self.output / "tensorboard", purge_step=self.step + 1)
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            with (
                mfkernels.use_backend(self.backend),
                self.progress.training(self.step, train.steps),
            ):
                metrics = self._loop(iter(loader))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if self.board is not None:
                with suppress(OSError):  # a full disk, already reported
                    self.board.close()
        return metrics

    def _loop(self, batches: Iterator[Batch]) -> dict[str, float]:
        train = self.config.train
        evaluation: Evaluation | None = None
        window = _Window(self.accelerator.device)
        while self.step < train.steps:
            self._train_step_or_save(batches, window)
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
                stop = self._must_stop(now=due)
                # Before an evaluation, which may take long: whatever ends it, the step is saved.
                if stop or due or self.step % train.checkpoint_every == 0:
                    self._save(required=stop or done)
                if stop:
                    raise self._stopped()
                if due:
                    evaluation = self._evaluate()
        return self._finish(evaluation or self._evaluate())

    def _train_step_or_save(self, batches: Iterator[Batch], window: _Window) -> None:
        """A step; a sample that cannot be used costs none of the steps before it."""
        try:
            self._train_step(batches, window)
        except DatasetError as error:
            # Other processes may have got their samples: they would not come to save together.
            if self.step == 0 or self.accelerator.num_processes > 1:
                raise
            self._save(required=True)
            raise DatasetError(
                f"{error}\nStep {self.step} is saved; mend the data, then {self._how_to_resume()}"
            ) from error

    def _train_step(self, batches: Iterator[Batch], window: _Window) -> None:
        self.model.train()
        for _ in range(self.config.train.accumulate):
            start = time.perf_counter()
            batch = next(batches).to(self.accelerator.device, non_blocking=True)
            window.waited += time.perf_counter() - start
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
        )
        # One process alone must not leave the others waiting for its figures.
        alone = self.accelerator.num_processes == 1
        evaluation = evaluate(
            self.bare_model,
            loader,
            self.info,
            self.config.eval,
            self.accelerator.device,
            self.progress,
            between_batches=self._stop_evaluation if alone else None,
        )
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
        if self.stop_signal:
            raise self._stopped()

    def _record(
        self, prefix: str, values: dict[str, float], evaluation: Evaluation | None = None
    ) -> None:
        """Writes figures and pictures where people look; a full disk does not stop training."""
        if self.board is None:
            return
        try:
            for name, value in values.items():
                self.board.add_scalar(f"{prefix}/{name}", value, self.step)
            if evaluation is not None:
                for name, picture in evaluation.pictures.items():
                    self.board.add_image(f"{prefix}/{name}", picture, self.step)
                write_pictures(evaluation, self.output / "predictions")
        except OSError as error:
            self.progress.warn(f"could not record step {self.step}: {error}")

    def _save(self, *, required: bool) -> None:
        """Saves the run; a disk that refuses ends training only where this is `required`."""
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
        except CheckpointError as error:
            if required:
                raise
            self.progress.warn(f"{error} Training goes on.")

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
            (self.output / "metrics.json").write_text(metrics_to_json(metrics), encoding="utf-8")
        return metrics

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal:  # the second one does what it always did
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stop_signal = number
        if self.accelerator.is_main_process:
            # Not through the console: the signal may have come in the middle of one of its lines.
            os.write(2, b"\nstopping after this step (once more to stop at once)\n")

    def _must_stop(self, *, now: bool) -> bool:
        """Whether a signal came to any process; several ask each other every few steps or `now`."""
        if self.accelerator.num_processes == 1:
            return self.stop_signal != 0
        if not now and self.step % STOP_CHECK_EVERY:
            return False
        flag = torch.tensor([self.stop_signal], device=self.accelerator.device)
        self.stop_signal = int(self.accelerator.gather(flag).max().item())
        return self.stop_signal != 0

    def _stopped(self) -> TrainingStoppedError:
        return TrainingStoppedError(
            self.stop_signal,
            f"stopped at step {self.step}/{self.config.train.steps}; the checkpoint is complete. "
            f"Continue with: {self._how_to_resume()}",
        )

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


def remove_run(output: Path) -> None:
    """Removes an earlier run; only what a run writes is touched."""
    if not (output / RECIPE).exists():
        return
    for name in ("checkpoints", "tensorboard", "predictions"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (RECIPE, "metrics.json"):
        (output / name).unlink(missing_ok=True)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _with_classes(config: Config, count: int) -> Config:
    """Fills in the number of classes, or refuses one that contradicts the data."""
    wanted = config.model.num_classes
    if wanted not in (None, count):
        raise ValueError(
            f"model.num_classes is {wanted}, but the data set has {count} classes; "
            "leave it out to take the data set's"
        )
    return config.model_copy(
        update={"model": config.model.model_copy(update={"num_classes": count})}
    )
