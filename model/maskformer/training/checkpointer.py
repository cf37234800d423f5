"""Saving and restoring the state of a run in its folder, with advice if that fails."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.optim.swa_utils import AveragedModel

from maskformer.config.load import to_yaml
from maskformer.config.schema import Config
from maskformer.data import DatasetInfo
from maskformer.errors import CheckpointError, DatasetError, TrainingStoppedError, WorkerError
from maskformer.modeling.base import SegmentationModel
from maskformer.output.console import Progress
from maskformer.system.folder_lock import lock_folder
from maskformer.system.signals import Signals
from maskformer.system.writing import write_text
from maskformer.training.checkpoints.checksums import find_damage
from maskformer.training.checkpoints.resuming import (
    load_training_state,
    naming_damage,
    was_evaluated,
)
from maskformer.training.checkpoints.room import check_room, checkpoint_size, weights_size
from maskformer.training.checkpoints.writing import (
    best_score,
    mark_best,
    save_checkpoint,
    save_weights,
    set_link,
)
from maskformer.training.evaluator import score_metric
from maskformer.training.optimizer import load_optimizer_state
from maskformer.training.run_folder import (
    is_run,
    mark_run,
    remove_leftovers,
    remove_link,
    remove_run,
)
from maskformer.training.sharding import WHOLE, Shards, whole_state
from maskformer.weights.locate import (
    BEST,
    CHECKPOINTS,
    LAST,
    RECIPE,
    STATE,
    by_step,
    find_checkpoint,
    step_folders,
)


class Checkpointer:
    """Saves and restores the checkpoints of a run.

    Args:
        output: the run folder.
        config: the recipe, saved with every checkpoint.
        info: the classes, saved with every checkpoint.
        accelerator: gives the processes and the loss scaler.
        model, optimizer: as `Accelerator.prepare` returns them.
        signals: a request to save that it holds is cleared by each save.
        progress: prints messages and warnings.
        overwrite: whether `prepare` replaces a run that `output` already holds.
        average: the moving average of the weights. If given, it is saved as the model, and the
            weights themselves as part of the training state.
        shards: the sharded model, if the parameters are divided among the processes.

    Attributes:
        folder: the folder of the checkpoints.
        stale_evaluations: the number of evaluations since the best score.
    """

    def __init__(
        self,
        output: Path,
        config: Config,
        info: DatasetInfo,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        signals: Signals,
        progress: Progress,
        *,
        overwrite: bool = False,
        average: AveragedModel | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.output = output
        self.folder = output / CHECKPOINTS
        self._config = config
        self._info = info
        self._accelerator = accelerator
        self._model = model
        self._optimizer = optimizer
        self._signals = signals
        self._progress = progress
        self._overwrite = overwrite
        self._average = average
        self._shards = shards
        self._metric = score_metric(config)
        self.stale_evaluations = 0
        self._best = -math.inf
        self._drop_best = False
        """The best checkpoint is damaged; `prepare` removes the link to it."""
        self._resumed: Path | None = None
        self._saved_step: int | None = None
        self._unsaved = False
        """The last save failed for lack of space, and is to be retried after the evaluation."""
        self._score: float | None = None

    def restore(self, checkpoint: Path) -> int:
        """Restore the training state, which is everything but `model.safetensors`.

        Returns:
            The step at which the checkpoint was saved.

        Raises:
            CheckpointError: a file is missing or damaged, or the parameter groups differ.
        """
        state = load_training_state(checkpoint, self._accelerator.process_index)
        with naming_damage(checkpoint / STATE):
            load_optimizer_state(self._optimizer.optimizer, state.optimizer)
            if state.weights is not None:  # `model.safetensors` holds their moving average
                set_model_state_dict(self._bare_model(), state.weights, options=WHOLE)
                if self._average is not None:
                    self._average.n_averaged.fill_(state.averaged_steps)
            if state.scaler is not None and self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(state.scaler)
        self.stale_evaluations = state.stale_evaluations
        best = find_checkpoint(self.folder, BEST)
        # A later step was passed over. It is damaged, unless the user went back to this one.
        self._drop_best = (
            best is not None and by_step(best) > by_step(checkpoint) and find_damage(best) != ""
        )
        self._best = -math.inf if self._drop_best else best_score(self.folder, self._metric)
        if was_evaluated(checkpoint):  # after the count in `state` was saved
            is_best = best == checkpoint.resolve()
            self.stale_evaluations = 0 if is_best else self.stale_evaluations + 1
        self._resumed = checkpoint.resolve()
        self._saved_step = state.step
        return state.step

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run folder against other runs.

        Raises:
            RunInUseError: another process is using it.
        """
        main = self._accelerator.is_main_process
        with lock_folder(self.output) if main else nullcontext("") as why:
            if why:
                self._progress.warn(f"{self.output} cannot be locked against other runs: {why}")
            yield

    def prepare(self) -> None:
        """Prepare the run folder, and remove the run that it replaces.

        Raises:
            DiskFullError: there is not enough space for a checkpoint.
        """
        if not self._accelerator.is_main_process:
            return
        passed_over = find_checkpoint(self.folder) != self._resumed
        if passed_over and self._resumed in step_folders(self.folder.resolve()):
            # The last one is damaged. No earlier one may be removed in its favour.
            set_link(self.folder / LAST, self._resumed)
        needed = checkpoint_size(self._bare_model())
        if self._average is not None:
            needed += weights_size(self._bare_model())
        keep = self._config.train.keep
        if warning := check_room(self.output, needed, overwrite=self._overwrite, keep=keep):
            self._progress.warn(warning)
        if self._overwrite and is_run(self.output):
            remove_run(self.output)
        if self._drop_best:
            remove_link(self.folder / BEST)
        remove_leftovers(self.output)
        mark_run(self.output)
        write_text(self.output / RECIPE, to_yaml(self._config))

    def save(self, step: int, *, required: bool, again: bool = False) -> None:
        """Save a checkpoint. Must be called by every process.

        Args:
            step: the number of finished steps.
            required: raise an error if the checkpoint cannot be written, after saving at least the
                weights somewhere; otherwise only warn.
            again: the last checkpoint of a run, before its evaluation. If it cannot be
                written and there is only one process, the save is retried after the evaluation
                (`saved_in_the_end`).

        Raises:
            CheckpointError: the checkpoint cannot be written, and training cannot continue.
        """
        requested, self._signals.save = self._signals.save, False
        model = self._saved_model()
        try:
            save_checkpoint(
                self.folder,
                step,
                model,
                self._state(step),
                self._config,
                self._info,
                self._accelerator,
            )
            self._unsaved = False
        except CheckpointError as error:
            if again and self._accelerator.num_processes == 1:
                self._unsaved = True
                self._progress.warn(f"{error} Saving is retried after the evaluation.")
            elif required or again:
                raise CheckpointError(f"{error} {self._save_weights(step, model)}") from error
            else:
                self._progress.warn(f"{error} Training continues.")
            return
        self._saved_step = step
        if requested:
            self._progress.print(f"saved step {step}/{self._config.train.steps} (SIGUSR2)")

    def find_last(self) -> Path | None:
        """Return the last complete checkpoint, or None."""
        return find_checkpoint(self.folder)

    def add_score(self, step: int, score: float) -> None:
        """Record the score of a saved step, and mark the step as the best if it is."""
        self._score = score
        better = math.isfinite(score) and score > self._best
        self._best = score if better else self._best
        self.stale_evaluations = 0 if better else self.stale_evaluations + 1
        if self._accelerator.is_main_process:
            try:
                self._mark_best(step, score)
            except CheckpointError as error:
                self._progress.warn(f"{error} Training continues.")

    @contextmanager
    def saved_in_the_end(self, step: int) -> Iterator[None]:
        """Retry a failed last save after the block, even if the last evaluation in it fails."""
        try:
            yield
        finally:
            if self._unsaved:
                self.save(step, required=True)
                if self._score is not None:
                    self._mark_best(step, self._score)

    def stopped(self, step: int) -> TrainingStoppedError:
        """Save the step if necessary, and return the error that ends a run after a signal."""
        self._save_if_missing(step)
        return TrainingStoppedError(
            self._signals.stop,
            f"stopped at step {step}/{self._config.train.steps}; the checkpoint is complete. "
            f"Continue with: {self._how_to_resume()}",
        )

    def with_advice(
        self, error: DatasetError | WorkerError, step: int
    ) -> DatasetError | WorkerError:
        """Save the step if necessary, and return the error with advice on how to continue."""
        self._save_if_missing(step)
        kind = WorkerError if isinstance(error, WorkerError) else DatasetError
        remedy = "continue with:" if kind is WorkerError else "fix the data, then run:"
        return kind(f"{error}\nStep {step} is saved; {remedy} {self._how_to_resume()}")

    def _bare_model(self) -> SegmentationModel:
        model: SegmentationModel = self._accelerator.unwrap_model(self._model)
        return model

    def _saved_model(self) -> SegmentationModel:
        """Return the model to save: the average of the weights if there is one."""
        if self._shards is not None:
            return self._shards.whole_model()
        if self._average is None:
            return self._bare_model()
        return cast(SegmentationModel, self._average.module)

    def _mark_best(self, step: int, score: float) -> None:
        keep = self._config.train.keep
        mark_best(self.folder, step, score, metric=self._metric, keep=keep)

    def _state(self, step: int) -> dict[str, Any]:
        scaler, optimizer = self._accelerator.scaler, self._optimizer
        state = {
            "step": step,
            "optimizer": whole_state(optimizer) if self._shards else optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "stale_evaluations": self.stale_evaluations,
        }
        if self._average is not None:
            state["weights"] = dict(self._bare_model().state_dict())
            state["averaged_steps"] = self._average.n_averaged.item()
        return state

    def _save_if_missing(self, step: int) -> None:
        """Save the step unless that was done or is to be retried. All processes call this between
        steps, because saving needs all of them.
        """
        if self._saved_step != step and not self._unsaved:
            self.save(step, required=True)

    def _save_weights(self, step: int, model: SegmentationModel) -> str:
        """Save only the weights as a last resort; return a text that says how to continue."""
        try:
            folder = save_weights(self.output, step, model, self._config, self._info)
        except CheckpointError as error:
            return f"{error} Free disk space, then run: {self._how_to_resume()}"
        return (
            f"The model of step {step}, without the training state, is in {folder}: use it with "
            "--checkpoint to evaluate or predict, or with --weights to start a new run. Free disk "
            "space before the next run"
        )

    def _how_to_resume(self) -> str:
        return f"maskformer train --resume --output {shlex.quote(str(self.output))}"
