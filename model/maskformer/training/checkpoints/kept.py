"""Which checkpoints of a run stay: what `last` and `best` name, and the newest few."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from maskformer.system import writing
from maskformer.training.run_folder import remove_checkpoint, remove_link, size_of
from maskformer.weights.locate import BEST, LAST, find_checkpoint, follow


def linked(folder: Path) -> set[Path]:
    """The step folders that `last` and `best` name."""
    return {follow(folder / name).resolve() for name in (LAST, BEST)}


def remove_old(folder: Path, keep: int) -> None:
    """Removes superseded step folders and what killed processes left half written.

    Steps after the last are left over from a run that was resumed before them.
    """
    kept = linked(folder)
    last = follow(folder / LAST).resolve().name
    earlier = [step for step in _steps(folder) if _order(step.name) <= _order(last)]
    kept |= {step.resolve() for step in earlier[-keep:]}
    for step in (*_steps(folder), *folder.glob(".step_*.partial")):
        if step.resolve() not in kept:
            remove_checkpoint(step)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"), key=lambda step: _order(step.name))


def _order(name: str) -> tuple[int, str]:
    """Step 10,000,000 has one more digit."""
    return len(name), name


def make_room(folder: Path, needed: int) -> None:
    """Removes checkpoints that are neither the last nor the best where a new one takes their room,
    in the end the last if it is not the best.

    Raises:
        DiskFullError: there is too little room all the same.
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
    """Checkpoints that may go where room is needed, oldest first.

    In the end the last, if the best is another.
    """
    last, best = find_checkpoint(folder), find_checkpoint(folder, BEST)
    named = linked(folder)
    older = [step for step in _steps(folder) if step.resolve() not in named]
    return older + ([last] if last and best and last != best else [])


def remove_checkpoints(folder: Path, steps: Iterable[Path]) -> None:
    """Removes checkpoints, and the link where the last is one of them."""
    last = find_checkpoint(folder)
    for step in steps:
        if step == last:
            remove_link(folder / LAST)
        remove_checkpoint(step)
