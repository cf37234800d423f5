"""Checkpoints are written whole, or not at all."""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from maskformer.config.load import to_yaml
from maskformer.config.schema import Config
from maskformer.data import DatasetInfo
from maskformer.errors import CheckpointError, DiskFullError
from maskformer.modeling.base import SegmentationModel
from maskformer.system.writing import (
    FULL_DISK,
    check_space,
    free_megabytes,
    megabytes,
    sync,
    sync_folder,
    write_json,
    write_text,
)
from maskformer.training.checkpoints.checksums import write_checksums
from maskformer.training.checkpoints.contents import DATASET
from maskformer.training.checkpoints.kept import (
    linked,
    make_room,
    remove_checkpoints,
    remove_old,
    superseded,
)
from maskformer.training.checkpoints.room import bytes_of, checkpoint_size, weights_size
from maskformer.training.run_folder import remove_checkpoint
from maskformer.weights.locate import BEST, LAST, RECIPE, STATE, find_checkpoint, follow

SCORE = "score.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: SegmentationModel,
    state: dict[str, Any],
    config: Config,
    info: DatasetInfo,
    accelerator: Accelerator,
) -> Path:
    """Writes `folder/step_N` and points `last` at it; called by every process.

    Args:
        folder: the run's `checkpoints` folder.
        model: the bare model, not a wrapper of it.
        state: what training needs besides the weights; tensors and plain values only.

    Raises:
        CheckpointError: the disk refuses (full, read-only) this process; earlier checkpoints stay,
            but where both `last` and `best` are there, `last` makes room for this one.
    """
    target = _step_folder(folder, step)
    extra = bytes_of(state.get("weights", {}).values())
    needed = checkpoint_size(model, state["optimizer"]) + extra
    error = _write_checkpoint(target, needed, model, state, config, info, accelerator)
    if _is_full_disk(error) and accelerator.num_processes == 1 and superseded(folder):
        remove_checkpoints(folder, superseded(folder))  # a quota does not show in the free room
        error = _write_checkpoint(target, needed, model, state, config, info, accelerator)
    if error is not None:
        room = f" {megabytes(needed)} are needed, {free_megabytes(folder)} are free."
        kept = find_checkpoint(folder)
        raise CheckpointError(
            f"could not save {target}: {error}."
            + ("" if isinstance(error, DiskFullError) else room)
            + (f" The last complete checkpoint is {kept}." if kept else " There is no earlier one.")
        )
    return target


def _write_checkpoint(
    target: Path,
    needed: int,
    model: SegmentationModel,
    state: dict[str, Any],
    config: Config,
    info: DatasetInfo,
    accelerator: Accelerator,
) -> Exception | None:
    """Returns what went wrong in this process; nothing is left of it then."""
    folder = target.parent
    partial = folder / f".{target.name}.partial"
    problem: Exception | None = None
    if accelerator.is_main_process:
        try:
            remove_old(folder, config.train.keep)
            make_room(folder, needed)
            partial.mkdir(parents=True)
        except OSError as error:
            problem = error
    accelerator.wait_for_everyone()
    if problem is None:
        try:
            torch.save(_rng_state(), partial / f"rng_{accelerator.process_index}.pt")
            if accelerator.is_main_process:
                model.save_pretrained(partial)
                torch.save(state, partial / STATE)
                write_text(partial / RECIPE, to_yaml(config))
                write_text(partial / DATASET, info_to_json(info))
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            problem = error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and problem is None:
        try:
            write_checksums(partial)
            _flush(partial)
            # A linked folder of this step holds this very state. One without a link is left over
            # from a run that was resumed at an earlier step, perhaps with another recipe.
            if target.resolve() not in linked(folder):
                _clear(target)
                partial.replace(target)
                sync_folder(folder)
            _link(folder / LAST, target)
            remove_old(folder, config.train.keep)
        except OSError as error:
            problem = error
    if problem is not None:
        remove_checkpoint(partial)
    return problem


def _is_full_disk(error: Exception | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    # What torch.save makes of it.
    return "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)


def mark_best(
    folder: Path, step: int, score: float, *, metric: str | None = None, keep: int = 1
) -> bool:
    """Notes the score of `folder/step_N`, which says that it was evaluated, and points `best` there
    if the score exceeds that of the best one so far.

    Args:
        folder: the run's `checkpoints` folder.
        metric: what the score measures; the best in another metric is no rival.
        keep: how many of the newest checkpoints stay besides the best.

    Returns:
        Whether it did; not for a score that is not finite, nor for a step that was not saved.

    Raises:
        CheckpointError: the disk refuses; the earlier best checkpoint stays.
    """
    target = _step_folder(folder, step)
    if not (target / STATE).is_file():
        return False
    better = math.isfinite(score) and score > best_score(folder, metric)
    noted = {"score": score if math.isfinite(score) else None, "metric": metric}
    try:
        write_json(target / SCORE, noted)
        if not better:
            return False
        _link(folder / BEST, target)
        remove_old(folder, keep)
    except OSError as error:
        raise CheckpointError(f"could not make {target} the best checkpoint: {error}.") from error
    return True


def best_score(folder: Path, metric: str | None = None) -> float:
    """The score of the best checkpoint, minus infinity where none is, or it is best in another
    metric than this.
    """
    try:
        values = json.loads((follow(folder / BEST) / SCORE).read_text(encoding="utf-8"))
        # Earlier versions did not name it.
        same = metric is None or values.get("metric") in (None, metric)
        return float(values["score"]) if same else -math.inf
    except (OSError, ValueError, KeyError, TypeError):
        return -math.inf


def save_weights(
    run: Path, step: int, model: SegmentationModel, config: Config, info: DatasetInfo
) -> Path:
    """The last resort where a checkpoint finds no room: the model without the training state, which
    takes a third; in the run folder, or else in that for temporary files or the user's home.

    Returns:
        The folder, which `evaluate`, `predict` and `train --weights` take.

    Raises:
        CheckpointError: no room anywhere.
    """
    needed = weights_size(model)
    problems = []
    for folder in (run, Path(tempfile.gettempdir()), Path.home()):
        partial: Path | None = None
        try:
            check_space(folder, needed, "the model alone")
            partial = Path(tempfile.mkdtemp(".partial", f".step_{step:07d}.", folder))
            model.save_pretrained(partial)
            write_text(partial / RECIPE, to_yaml(config))
            write_text(partial / DATASET, info_to_json(info))
            name = f"weights_step_{step:07d}"
            if folder == run:
                target = run / name
                _clear(target)
            else:
                target = folder / f"maskformer_{name}_{secrets.token_hex(4)}"
            partial.replace(target)
            sync_folder(folder)
        except (OSError, RuntimeError) as error:
            if partial is not None:
                remove_checkpoint(partial)
            problems.append(f"{folder}: {error}")
        else:
            return target
    raise CheckpointError(f"could not save the model alone either: {'; '.join(problems)}.")


def info_to_json(info: DatasetInfo) -> str:
    values = asdict(info)
    values["things"] = sorted(info.things)
    return json.dumps(values, indent=1)


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _flush(folder: Path) -> None:
    """Forces the files to disk: a rename must not outlive a power cut that the contents did not."""
    for file in folder.iterdir():
        sync(file)
    sync_folder(folder)


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}"


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    if link.is_dir() and not link.is_symlink():  # a copy of the run that followed its links
        _clear(link)
    try:
        temporary.symlink_to(target.name)
        temporary.replace(link)
        sync_folder(link.parent)
    except OSError:  # exFAT, some network drives
        temporary.unlink(missing_ok=True)
        write_text(link, f"{target.name}\n")


def _clear(target: Path) -> None:
    """Makes way for a folder: removes a checkpoint, sets aside what the user put there."""
    remove_checkpoint(target)
    number = 1
    while target.exists():
        aside = target.with_name(f"kept_{target.name}_{number}")
        if not aside.exists():
            target.rename(aside)
        number += 1
