"""Finding and reading the checkpoint from which a run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from maskformer.config.schema.fields import NonNegativeInt
from maskformer.errors import CheckpointError
from maskformer.system.documents import check, one_line
from maskformer.training.checkpoints.checksums import find_damage
from maskformer.training.checkpoints.writing import SCORE
from maskformer.training.run_folder import WEIGHTS, is_run
from maskformer.weights.locate import BEST, CHECKPOINTS, LAST, STATE, by_step, find_checkpoint
from maskformer.weights.safe_pickle.unpickle import read_pickle


def checkpoint_to_resume(run: Path, warn: Callable[[str], None] | None = None) -> Path:
    """Return the last complete and undamaged checkpoint of a run folder.

    Args:
        run: the run folder.
        warn: called for each newer checkpoint that is skipped, with the reason.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    folder = run / CHECKPOINTS
    problems: dict[str, str] = {}
    last = find_checkpoint(folder)
    others = {step.resolve() for step in folder.glob("step_*")} - {last}
    for step in [*filter(None, [last]), *sorted(others, key=by_step, reverse=True)]:
        problem = find_damage(step)
        if not problem:
            if warn is not None:
                for name, text in (_unfinished(folder, step, problems) | problems).items():
                    warn(f"skipped {folder / name}: {text}; resuming from {step.name}")
            return step
        problems[step.name] = problem
    for name, problem in problems.items():
        raise CheckpointError(f"cannot resume from {folder / name}: {problem}")
    raise CheckpointError(f"nothing to resume: {folder} holds no complete checkpoint")


def find_run(folder: Path) -> tuple[bool, bool]:
    """Return whether a folder holds a run to resume, and whether it holds a run that ended before
    its first save, which a new run may replace.

    Raises:
        FileExistsError: the run has only weights left, which a new run would remove.
    """
    checkpoints = folder / CHECKPOINTS
    # Copying a run may have turned its links into folders.
    copied = (find_checkpoint(checkpoints, name) for name in (LAST, BEST))
    begun = any(checkpoints.glob("step_*")) or any(copied)
    saved = sorted(folder.glob(WEIGHTS))
    if saved and not begun:
        raise FileExistsError(
            f"{folder} holds no checkpoint to resume from, only {saved[-1].name}, the model of a "
            "run that had no disk space for a checkpoint: start from it (--weights) in another "
            "--output, or remove it with --overwrite in place of --auto-resume"
        )
    return begun, is_run(folder) and not begun


def _unfinished(folder: Path, taken: Path, known: Container[str]) -> dict[str, str]:
    """Return the incomplete or damaged steps after `taken` that are not `known`, with the reason.

    Earlier steps are not checked, because reading them would take as long as reading `taken`.
    """
    if not taken.name.startswith("step_"):
        return {}
    found: dict[str, str] = {}
    for partial in folder.glob(".step_*.partial"):
        target = partial.with_name(partial.stem.removeprefix("."))
        if by_step(target) >= by_step(taken):
            found[partial.name] = "its save was not finished"
    later = (step for step in folder.glob("step_*") if by_step(step) > by_step(taken))
    found |= {step.name: find_damage(step) for step in later if step.name not in known}
    return {name: text for name, text in found.items() if text}


def was_evaluated(checkpoint: Path) -> bool:
    """Whether the evaluation of this checkpoint was completed."""
    return (checkpoint / SCORE).is_file()


def count_processes(checkpoint: Path) -> int:
    """Return the number of processes that trained when a checkpoint was saved."""
    return len(list(checkpoint.glob("rng_*.pt")))


class TrainingState(BaseModel):
    """The contents of `training_state.pt`.

    Attributes:
        weights: the weights being trained, if the checkpoint's model is their moving average.
        averaged_steps: the number of steps in that average.
    """

    step: NonNegativeInt
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    stale_evaluations: NonNegativeInt = 0
    weights: dict[str, Any] | None = None
    averaged_steps: NonNegativeInt = 0


class _RandomState(BaseModel):
    """The contents of `rng_*.pt`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    cpu: Tensor
    cuda: Tensor | None


def load_training_state(checkpoint: Path, process_index: int) -> TrainingState:
    """Read the training state, and restore the random number generators of this process.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    file = checkpoint / STATE
    with naming_damage(file):
        state = check(TrainingState, read_pickle(file))
    file = checkpoint / f"rng_{process_index}.pt"
    if file.is_file():  # missing if the run is resumed with more processes than before
        with naming_damage(file):
            _restore_rng(check(_RandomState, read_pickle(file)))
    return state


@contextmanager
def naming_damage(file: Path) -> Iterator[None]:
    """Convert errors in reading or loading the contents of a file to one that names the file.

    Raises:
        CheckpointError: in place of these errors.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot resume from {file}: {one_line(error)}") from error


def _restore_rng(state: _RandomState) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.cuda)
