"""What a run goes on from."""

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
from maskformer.training.run_folder import CHECKPOINTS, WEIGHTS, is_run
from maskformer.weights.locate import BEST, LAST, STATE, find_checkpoint
from maskformer.weights.safe_pickle.unpickle import read_pickle


def checkpoint_to_resume(run: Path, warn: Callable[[str], None] | None = None) -> Path:
    """The last complete and undamaged checkpoint of a run folder.

    Args:
        warn: told which newer ones are passed over, and why.

    Raises:
        CheckpointError: there is none.
    """
    folder = run / "checkpoints"
    problems: dict[str, str] = {}
    last = find_checkpoint(folder)
    others = {step.resolve() for step in folder.glob("step_*")} - {last}
    for step in [*filter(None, [last]), *sorted(others, reverse=True)]:
        problem = find_damage(step)
        if not problem:
            if warn is not None:
                for name, text in (_unfinished(folder, step, problems) | problems).items():
                    warn(f"passed over {folder / name}: {text}; resuming from {step.name}")
            return step
        problems[step.name] = problem
    for name, problem in problems.items():
        raise CheckpointError(f"cannot resume from {folder / name}: {problem}")
    raise CheckpointError(f"nothing to resume: {folder} holds no complete checkpoint")


def find_run(folder: Path) -> tuple[bool, bool]:
    """Whether a folder holds a run to resume, and whether one that ended before its first save,
    which a new one may replace.

    Raises:
        FileExistsError: all that is left of the run are weights, which a new one would remove.
    """
    checkpoints = folder / CHECKPOINTS
    copied = (find_checkpoint(checkpoints, name) for name in (LAST, BEST))  # links made folders
    begun = any(checkpoints.glob("step_*")) or any(copied)
    saved = sorted(folder.glob(WEIGHTS))
    if saved and not begun:
        raise FileExistsError(
            f"{folder} holds no checkpoint to resume from, but {saved[-1].name}, the model of a "
            "run that found no room for one: start from it (--weights) in another --output, or "
            "remove it with --overwrite in place of --auto-resume"
        )
    return begun, is_run(folder) and not begun


def _unfinished(folder: Path, taken: Path, known: Container[str]) -> dict[str, str]:
    """What lies after `taken`, is not among those known, and was not completed or has lost files.

    Those before it are not read: their checksums would take as long as that of `taken`.
    """
    if taken.name < "step_":
        return {}
    found = {step.name: "its save was not finished" for step in folder.glob(".step_*.partial")}
    later = (step for step in folder.glob("step_*") if step.name > taken.name)
    found |= {step.name: find_damage(step) for step in later if step.name not in known}
    return {n: text for n, text in found.items() if text and n.lstrip(".") > taken.name}


def was_evaluated(checkpoint: Path) -> bool:
    """Whether the evaluation at this step came to its end."""
    return (checkpoint / SCORE).is_file()


def count_processes(checkpoint: Path) -> int:
    """How many processes trained together when it was saved."""
    return len(list(checkpoint.glob("rng_*.pt")))


class TrainingState(BaseModel):
    """`training_state.pt`.

    Attributes:
        weights: of the model that learns, where the checkpoint shows an average.
        averaged_steps: how many steps are in that.
    """

    step: NonNegativeInt
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
    stale_evaluations: NonNegativeInt = 0
    weights: dict[str, Any] | None = None
    averaged_steps: NonNegativeInt = 0


class _RandomState(BaseModel):
    """`rng_*.pt`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    cpu: Tensor
    cuda: Tensor | None


def load_training_state(checkpoint: Path, process_index: int) -> TrainingState:
    """Reads the training state and restores this process's random generators.

    Raises:
        CheckpointError: a missing or damaged file.
    """
    file = checkpoint / STATE
    with naming_damage(file):
        state = check(TrainingState, read_pickle(file))
    file = checkpoint / f"rng_{process_index}.pt"
    if file.is_file():  # absent when resumed with more processes than before
        with naming_damage(file):
            _restore_rng(check(_RandomState, read_pickle(file)))
    return state


@contextmanager
def naming_damage(file: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with what was read from it.

    Raises:
        CheckpointError: in place of the errors of those who take it.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot resume from {file}: {one_line(error)}") from error


def _restore_rng(state: _RandomState) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.cuda)
