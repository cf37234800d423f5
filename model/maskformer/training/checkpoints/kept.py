"""Removal of old checkpoints. Those that `last` and `best` point to and the newest are kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from maskformer.system import writing
from maskformer.training.run_folder import remove_checkpoint, remove_link, size_of
from maskformer.weights.locate import BEST, LAST, by_step, find_checkpoint, follow, step_folders


def linked(folder: Path) -> set[Path]:
    """Return the step folders that `last` and `best` point to."""
    return {follow(folder / name).resolve() for name in (LAST, BEST)}


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` step folders and those that a link points to, and the
    partial folders of killed processes.

    Steps after the last one are left over from before the run was resumed at an earlier step.
    """
    kept = linked(folder)
    last = follow(folder / LAST).resolve()
    earlier = [step for step in step_folders(folder) if by_step(step) <= by_step(last)]
    kept |= {step.resolve() for step in earlier[-keep:]}
    for step in (*step_folders(folder), *folder.glob(".step_*.partial")):
        if step.resolve() not in kept:
            remove_checkpoint(step)


def make_room(folder: Path, needed: int) -> None:
    """Free space for a new checkpoint by removing superseded ones, if that frees enough.

    Raises:
        DiskFullError: there is not enough space even so.
    """
    free = writing.free_bytes(folder)
    candidates = superseded(folder)
    if free is not None and free < needed <= free + sum(map(size_of, candidates)):
        count, missing = 0, needed - free
        while missing > 0:
            missing -= size_of(candidates[count])
            count += 1
        remove_checkpoints(folder, candidates[:count])
    writing.check_space(folder, needed, "a checkpoint")


def superseded(folder: Path) -> list[Path]:
    """Return the checkpoints that may be removed when space is needed, in order of removal.

    These are those that no link points to, oldest first, and then the last one if the best is
    another one.
    """
    last, best = find_checkpoint(folder), find_checkpoint(folder, BEST)
    named = linked(folder)
    older = [step for step in step_folders(folder) if step.resolve() not in named]
    return older + ([last] if last and best and last != best else [])


def remove_checkpoints(folder: Path, steps: Iterable[Path]) -> None:
    """Remove checkpoints, and the link `last` if it points to one of them."""
    last = find_checkpoint(folder)
    for step in steps:
        if step == last:
            remove_link(folder / LAST)
        remove_checkpoint(step)
