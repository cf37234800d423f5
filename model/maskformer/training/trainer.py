"""The training loop. `build_training` builds its parts from a recipe; a program may use others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

import mfkernels
from maskformer.config.choices import Backend
from maskformer.config.schema import TrainConfig
from maskformer.data import Batch
from maskformer.errors import DatasetError, TrainingDivergedError, WorkerError
from maskformer.evaluation.evaluate import Evaluation
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.criterion import PerPixelCriterion
from maskformer.system.signals import Interrupted
from maskformer.training.checkpointer import Checkpointer
from maskformer.training.data import TrainingData
from maskformer.training.evaluator import Evaluator
from maskformer.training.kernel_errors import kernel_errors
from maskformer.training.log_window import LogWindow
from maskformer.training.optimizer import logged_groups
from maskformer.training.reporter import Reporter
from maskformer.training.sharding import Shards, whole
from maskformer.training.signal_agreement import SignalAgreement
from maskformer.training.speed import uncompiled
from maskformer.training.transfer import Transfer
from mfkernels.distributed import mean_num_masks

COMPILED_ON = ("cuda",)
"""Types of devices on which kernels are compiled on first use."""
MOST_SEGMENTS = 100
"""Kernels for up to this many segments per image are compiled before the first step."""
DIVERGED_STEPS = 10
"""The run ends after this many consecutive steps without a finite gradient. A shorter run ends if
none of its steps has one.
"""


@dataclass
class TrainingParts:
    """The parts that the training loop works with.

    Attributes:
        train: the number of steps, when to log, save and evaluate, and how to clip gradients.
        accelerator: gives the device, the processes and the precision.
        data: its `loader(step)` returns the batches from a step on.
        model, optimizer: as `Accelerator.prepare` returns them.
        criterion: the criterion, on the device of the accelerator.
        scheduler: the learning-rate scheduler of the optimizer, at `step`.
        signals: tells whether to stop or to save.
        checkpointer: saves checkpoints.
        evaluator: evaluates the model.
        reporter: reports losses and metrics.
        step: the number of finished steps.
        evaluation_due: whether the evaluation of `step` was interrupted and is to be repeated.
        backend: the backend of the mfkernels operations, see `mfkernels.use_backend`.
        average: the moving average of the weights. If given, it is updated after every step, and
            evaluated in place of the model.
        layout: the memory format of images, the same as that of the model's convolutions.
        shards: the sharded model, if the parameters are divided among the processes.
    """

    train: TrainConfig
    accelerator: Accelerator
    data: TrainingData
    model: nn.Module
    criterion: mfkernels.MaskFormerCriterion | PerPixelCriterion
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    signals: SignalAgreement
    checkpointer: Checkpointer
    evaluator: Evaluator
    reporter: Reporter
    step: int = 0
    evaluation_due: bool = False
    backend: Backend = "auto"
    average: AveragedModel | None = None
    layout: torch.memory_format = torch.contiguous_format
    shards: Shards | None = None


class Trainer:
    """Runs the training loop over its parts.

    Attributes:
        step: the number of finished steps.
        skipped: the number of steps skipped because their gradient was not finite, as a scalar
            tensor on the device.
        skipped_in_a_row: the number of steps skipped since the last one that was not, likewise.
    """

    def __init__(self, parts: TrainingParts) -> None:
        self.parts = parts
        self.step = parts.step
        self.skipped = torch.zeros((), device=parts.accelerator.device)
        self.skipped_in_a_row = torch.zeros_like(self.skipped)
        self._rates: list[float] = []
        self._warm = False
        self._transfer = Transfer(parts.accelerator.device)

    @property
    def bare_model(self) -> SegmentationModel:
        """The model without the wrappers of distributed training."""
        model: SegmentationModel = self.parts.accelerator.unwrap_model(self.parts.model)
        return model

    @property
    def evaluated_model(self) -> SegmentationModel:
        """The moving average of the weights if there is one, otherwise the model. A sharded model
        is gathered into a full copy, for which every process must call this.
        """
        if self.parts.shards is not None:
            return self.parts.shards.whole_model()
        if self.parts.average is None:
            return self.bare_model
        return cast(SegmentationModel, self.parts.average.module)

    @property
    def finished(self) -> bool:
        """Whether the run was complete, including its last evaluation, before it was resumed."""
        return self.step > 0 and not self.parts.evaluation_due and self._at_end()

    def fit(self) -> dict[str, float]:
        """Train to the last step, evaluate, and return the metrics of the final model.

        For a run that was finished already, return the metrics that it wrote.

        Raises:
            TrainingStoppedError: a signal came; the last finished step was saved.
            TrainingDivergedError: gradients were no longer finite.
            CheckpointError: the last checkpoint could not be written.
            DatasetError, WorkerError: a batch could not be loaded; the last finished step was
                saved.
            DiskFullError: there is not enough space for a checkpoint; nothing was trained.
            RunInUseError: another process is using the run folder.
        """
        parts = self.parts
        with parts.checkpointer.locked():
            if self.finished and (metrics := parts.reporter.earlier_metrics(self.step)):
                parts.reporter.already_finished(self.step, early=self.step < parts.train.steps)
                return metrics
            loader = parts.data.loader(self.step)
            with parts.signals, mfkernels.use_backend(parts.backend):
                parts.checkpointer.prepare()  # removes the run that this one replaces
                with parts.reporter.open(self.step):
                    return self._loop(iter(loader))

    def _loop(self, batches: Iterator[Batch]) -> dict[str, float]:
        train, parts = self.parts.train, self.parts
        due = self.step % train.evaluate_every == 0 and 0 < self.step < train.steps
        evaluation = None
        if parts.evaluation_due and due:
            evaluation = self._evaluate()  # it was interrupted before the run was resumed
        window = LogWindow(parts.accelerator)
        while not self._at_end():
            evaluation = None
            self._train_step(self._wait_for_batches(batches, window), window)
            self.step += 1
            parts.reporter.advance(self.step)
            done = self.step == train.steps
            if done or self.step % train.log_every == 0:
                self._log(window)
                window = LogWindow(parts.accelerator)
            with window.clock_stopped():
                due = done or self.step % train.evaluate_every == 0
                stop, save = parts.signals.agree(self.step, now=due)
                # Save before an evaluation, which may take long and may be interrupted.
                if stop or save or due or self.step % train.checkpoint_every == 0:
                    parts.checkpointer.save(self.step, required=stop, again=done and not stop)
                if stop:
                    raise parts.checkpointer.stopped(self.step)
                if due and not done:
                    evaluation = self._evaluate()
        if evaluation is not None:
            parts.reporter.stopped_early(self.step, parts.checkpointer.stale_evaluations)
        with parts.checkpointer.saved_in_the_end(self.step):
            return parts.reporter.finish(self.step, evaluation or self._evaluate())

    def _at_end(self) -> bool:
        """Whether all steps are finished, or `train.patience` evaluations did not improve."""
        train = self.parts.train
        out_of_patience = (
            train.patience is not None
            and self.parts.checkpointer.stale_evaluations >= train.patience
        )
        return self.step >= train.steps or out_of_patience

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Save the finished steps if a signal or unusable data ends the block.

        This is done only for a single process: with several, the others would not take part in
        saving.
        """
        alone = self.parts.accelerator.num_processes == 1
        try:
            with self.parts.signals.interruptible(alone):
                yield
        except Interrupted:
            raise self.parts.checkpointer.stopped(self.step) from None
        except (DatasetError, WorkerError) as error:
            if self.step == 0 or not alone:
                raise
            raise self.parts.checkpointer.with_advice(error, self.step) from error

    def _wait_for_batches(self, batches: Iterator[Batch], window: LogWindow) -> list[Batch]:
        """Load all batches of a step before the first is used, so that a failure to load one does
        not leave the step half done.
        """
        start = time.perf_counter()
        with self._between_steps():
            step = [next(batches) for _ in range(self.parts.train.accumulate)]
        window.waited += time.perf_counter() - start
        return step

    def _train_step(self, batches: list[Batch], window: LogWindow) -> None:
        parts, accelerator = self.parts, self.parts.accelerator
        parts.model.train()
        options: dict[str, Tensor] = {}
        if len(batches) > 1 and isinstance(parts.criterion, mfkernels.MaskFormerCriterion):
            # Average over the accumulated batches of a step as over its processes.
            targets = [batch.targets for batch in batches]
            options["num_masks"] = mean_num_masks(*targets, device=accelerator.device)
        for batch in batches:
            batch = self._transfer(batch)
            with accelerator.accumulate(parts.model):
                predictions = self._predict(batch)
                self._warm_up(predictions, batch)
                losses = parts.criterion(predictions, batch.targets, **options)
                loss = parts.criterion.total(losses)
                self._verify_kernels(predictions, batch, options, window)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = whole(
                        accelerator.clip_grad_norm_(parts.model.parameters(), parts.train.clip_norm)
                    )
                    self._update(norm)
                    window.add_norm(norm)
            window.add_losses(losses, loss, len(batch.names))
        window.steps += 1

    def _warm_up(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Compile the criterion's kernels before the first step, or find that PyTorch has to
        replace them.

        Otherwise, later steps would be delayed whenever a new number of segments occurs.
        """
        parts, targets = self.parts, batch.targets
        if self._warm or parts.accelerator.device.type not in COMPILED_ON:
            return
        self._warm = True
        if isinstance(parts.criterion, mfkernels.MaskFormerCriterion):
            info = parts.data.info
            mfkernels.warmup(
                parts.criterion,
                predictions,
                targets.size,
                most_segments=MOST_SEGMENTS
                if info.things
                else min(MOST_SEGMENTS, info.num_classes),
                overlap=targets.masks is not None,
            )

    def _verify_kernels(
        self,
        predictions: Mapping[str, Tensor],
        batch: Batch,
        options: dict[str, Tensor],
        window: LogWindow,
    ) -> None:
        every, criterion = self.parts.train.verify_kernels, self.parts.criterion
        if every is None or self.step % every > 0:
            return
        if isinstance(criterion, mfkernels.MaskFormerCriterion):
            window.kernel_errors = kernel_errors(criterion, predictions, batch.targets, **options)

    def _predict(self, batch: Batch) -> Mapping[str, Tensor]:
        model = self.parts.model
        pixel_values = batch.pixel_values.contiguous(memory_format=self.parts.layout)
        if self.parts.data.config.model.decoder.mask_padding:
            return model(pixel_values, image_sizes=batch.image_sizes)
        return model(pixel_values)

    def _update(self, norm: Tensor) -> None:
        """Do one optimizer step, or skip it if the gradient is not finite.

        A fused optimizer skips it on the device, without synchronising with the host.
        """
        parts, optimizer = self.parts, self.parts.optimizer
        step = True
        bad = (~torch.isfinite(norm)).float()
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + bad) * bad
        if parts.train.precision != "fp16":  # for fp16, the loss scaler skips the step
            if optimizer.optimizer.defaults.get("fused"):
                optimizer.optimizer.found_inf = bad
            else:
                step = not bad
        if step:
            optimizer.step()
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        parts.scheduler.step()
        optimizer.zero_grad()
        if parts.average is not None:
            parts.average.update_parameters(self.bare_model)

    def _log(self, window: LogWindow) -> None:
        values = window.summary()
        groups = logged_groups(self.parts.model, self.parts.optimizer)
        # The optimizer already has the rates of the next step.
        values |= {name: self._rates[index] for name, index in groups.items()}
        values["skipped_steps"] = self.skipped.item()
        if isinstance(self.parts.criterion, mfkernels.MaskFormerCriterion):
            bad_costs = self.parts.criterion.bad_costs
            values["bad_costs"] = self.parts.accelerator.reduce(bad_costs, "sum").item()
        values |= window.kernel_errors
        self.parts.reporter.log(self.step, values, window)
        in_a_row = int(self.skipped_in_a_row)
        train = self.parts.train
        # With fp16, some steps are skipped while the loss scaler searches for its scale.
        few = DIVERGED_STEPS if train.precision == "fp16" else max(train.steps, 2)
        if in_a_row >= min(DIVERGED_STEPS, few):
            last = self.parts.checkpointer.find_last()
            raise TrainingDivergedError(
                f"no finite gradient in the {in_a_row} steps before step {self.step}; all were "
                f"skipped. {'' if last is None else f'The last checkpoint is {last}. '}"
                "Lower train.lr or train in bf16."
            )

    def _evaluate(self) -> Evaluation:
        with self._between_steps(), uncompiled(self.parts.train):
            evaluation = self.parts.evaluator(self.evaluated_model)
        self.parts.reporter.add_evaluation(self.step, evaluation)
        self.parts.checkpointer.add_score(self.step, evaluation.score)
        return evaluation
