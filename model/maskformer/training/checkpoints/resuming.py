"""What a run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maskformer.errors import CheckpointError
from maskformer.training.checkpoints.checksums import find_damage
from maskformer.training.checkpoints.writing import SCORE
from maskformer.training.run_folder import is_run
from maskformer.weights.locate import STATE, find_checkpoint
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
                problems = _unfinished(folder, step) | problems
                for name, text in problems.items():
                    warn(f"passed over {folder / name}: {text}; resuming from {step.name}")
            return step
        problems[step.name] = problem
    for name, problem in problems.items():
        raise CheckpointError(f"cannot resume from {folder / name}: {problem}")
    raise CheckpointError(f"nothing to resume: {folder} holds no complete checkpoint")


def find_run(folder: Path) -> tuple[bool, bool]:
    """Whether a folder holds a run to resume, and whether one that ended before its first save,
    which a new one may replace.
    """
    begun = any((folder / "checkpoints").glob("step_*"))
    return begun, is_run(folder) and not begun


def _unfinished(folder: Path, taken: Path) -> dict[str, str]:
    """What lies after `taken` and was not completed, or has lost files."""
    found = {step.name: "its save was not finished" for step in folder.glob(".step_*.partial")}
    found |= {step.name: find_damage(step) for step in folder.glob("step_*")}
    return {n: text for n, text in found.items() if text and n.lstrip(".") > taken.name >= "step_"}


def was_evaluated(checkpoint: Path) -> bool:
    """Whether the evaluation at this step came to its end."""
    return (checkpoint / SCORE).is_file()


def count_processes(checkpoint: Path) -> int:
    """How many processes trained together when it was saved."""
    return len(list(checkpoint.glob("rng_*.pt")))


def load_training_state(checkpoint: Path, process_index: int) -> dict[str, Any]:
    """Reads the training state and restores this process's random generators.

    Raises:
        CheckpointError: a missing or unreadable file.
    """
    try:
        state: dict[str, Any] = read_pickle(checkpoint / STATE)
        rng_file = checkpoint / f"rng_{process_index}.pt"
        if rng_file.is_file():  # absent when resumed with more processes than before
            _restore_rng(read_pickle(rng_file))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot resume from {checkpoint}: {reason}") from error
    return state


def _restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
