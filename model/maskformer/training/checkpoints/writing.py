"""Writing checkpoints atomically."""

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
    make_room,
    remove_checkpoints,
    remove_old,
    superseded,
)
from maskformer.training.checkpoints.room import bytes_of, checkpoint_size, weights_size
from maskformer.training.run_folder import remove_checkpoint, remove_link
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
    """Write `folder/step_N`, and point `last` to it. Must be called by every process.

    Args:
        folder: the run's `checkpoints` folder.
        step: N, the number of finished steps.
        model: the model without wrappers.
        state: what training needs besides the model; tensors and plain values only.
        config: the recipe.
        info: the classes.
        accelerator: gives the processes.

    Raises:
        CheckpointError: this process cannot write, such as to a full or read-only disk. Earlier
            checkpoints are kept, except that superseded ones, and `last` if there is another
            `best`, are removed if the new one needs their space.
    """
    target = _step_folder(folder, step)
    extra = bytes_of(state.get("weights", {}).values())
    needed = checkpoint_size(model, state["optimizer"]) + extra
    error = _write_checkpoint(target, needed, model, state, config, info, accelerator)
    if _is_full_disk(error) and accelerator.num_processes == 1 and superseded(folder):
        # Under a disk quota, `make_room` cannot know that there is too little space.
        remove_checkpoints(folder, superseded(folder))
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
    """Write a checkpoint; return the error of this process, if any, after removing the files."""
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
            # A folder of this step is left over from an attempt that failed, or from before the run
            # was resumed at an earlier step, perhaps because that folder is damaged.
            if target.resolve() == follow(folder / BEST).resolve():
                remove_link(folder / BEST)  # this step has not been evaluated yet
            _clear(target)
            partial.replace(target)
            sync_folder(folder)
            set_link(folder / LAST, target)
            remove_old(folder, config.train.keep)
        except OSError as error:
            problem = error
    if problem is not None:
        remove_checkpoint(partial)
    return problem


def _is_full_disk(error: Exception | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    # Messages of the RuntimeError that torch.save raises on a full disk.
    return "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)


def mark_best(
    folder: Path, step: int, score: float, *, metric: str | None = None, keep: int = 1
) -> bool:
    """Write the score of `folder/step_N`, which also marks the step as evaluated, and point `best`
    to it if its score is better than that of the best step so far.

    Args:
        folder: the run's `checkpoints` folder.
        step: N, the number of finished steps.
        score: the value of the metric.
        metric: the name of the metric. A best step by another metric is not compared.
        keep: how many of the newest checkpoints are kept besides the best.

    Returns:
        Whether the step is the best. It is not if the score is not finite or the step not saved.

    Raises:
        CheckpointError: a file cannot be written; the earlier best checkpoint is kept.
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
        set_link(folder / BEST, target)
        remove_old(folder, keep)
    except OSError as error:
        raise CheckpointError(f"could not make {target} the best checkpoint: {error}.") from error
    return True


def best_score(folder: Path, metric: str | None = None) -> float:
    """Return the score of the best checkpoint; minus infinity if there is none, or if it was chosen
    by another metric than `metric`.
    """
    try:
        values = json.loads((follow(folder / BEST) / SCORE).read_text(encoding="utf-8"))
        # Earlier versions did not write the metric.
        same = metric is None or values.get("metric") in (None, metric)
        return float(values["score"]) if same else -math.inf
    except (OSError, ValueError, KeyError, TypeError):
        return -math.inf


def save_weights(
    run: Path, step: int, model: SegmentationModel, config: Config, info: DatasetInfo
) -> Path:
    """Save only the model, as a last resort if there is not enough space for a checkpoint.

    Without the training state, it takes a third of the space. It is saved in the run folder or, if
    that fails, in the folder for temporary files or the user's home.

    Returns:
        The folder, which `evaluate`, `predict` and `train --weights` accept.

    Raises:
        CheckpointError: none of the folders has enough space.
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
    """Flush the files to disk, so that after a power failure the renamed folder cannot exist
    without its contents.
    """
    for file in folder.iterdir():
        sync(file)
    sync_folder(folder)


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}"


def set_link(link: Path, target: Path) -> None:
    """Let `last` or `best` point to a step folder beside it."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    if link.is_dir() and not link.is_symlink():  # the run was copied with its links followed
        _clear(link)
    try:
        temporary.symlink_to(target.name)
        temporary.replace(link)
        sync_folder(link.parent)
    except OSError:  # exFAT, some network drives
        temporary.unlink(missing_ok=True)
        write_text(link, f"{target.name}\n")


def _clear(target: Path) -> None:
    """Free the name of a folder: remove the checkpoint in it, and rename the folder if the user
    has other files there.
    """
    remove_checkpoint(target)
    number = 1
    while target.exists():
        aside = target.with_name(f"kept_{target.name}_{number}")
        if not aside.exists():
            target.rename(aside)
        number += 1
