"""Checkpoints that are complete or absent, never half.

    checkpoints/
      step_0001000/     config.json, model.safetensors (what `from_pretrained` reads),
                        recipe.yaml, dataset.json,
                        training_state.pt, rng_0.pt … one per process, SHA256SUMS
      last, best        links to the step folders; those evaluated also hold score.json

A folder is written under a temporary name, flushed to disk and renamed; links are replaced
atomically. Step folders that no link names are removed. The folder must be on a file system that
all processes share.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from maskformer.checksums import find_damage, write_checksums
from maskformer.config import Config, ShapesConfig, load_config, to_yaml
from maskformer.data import DatasetInfo
from maskformer.image_processor import ImageProcessor
from maskformer.model import SegmentationModel
from maskformer.palette import palette
from maskformer.weights.files import WEIGHT_SUFFIXES, read_json
from maskformer.weights.huggingface import CONFIG_FILE, class_names
from maskformer.weights.runs import BEST, LAST, STATE, find_local
from maskformer.weights.runs import find_checkpoint as find_checkpoint

RECIPE = "recipe.yaml"
DATASET = "dataset.json"
SCORE = "score.json"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; the message says what was kept."""


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
        CheckpointError: the disk refuses (full, read-only) this process; earlier checkpoints stay.
    """
    target = _step_folder(folder, step)
    partial = folder / f".{target.name}.partial"
    problem = ""
    if accelerator.is_main_process:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except OSError as error:
            problem = str(error)
    accelerator.wait_for_everyone()
    if not problem:
        try:
            torch.save(_rng_state(), partial / f"rng_{accelerator.process_index}.pt")
            if accelerator.is_main_process:
                model.save_pretrained(partial)
                torch.save(state, partial / STATE)
                (partial / RECIPE).write_text(to_yaml(config), encoding="utf-8")
                (partial / DATASET).write_text(info_to_json(info), encoding="utf-8")
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            problem = str(error)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not problem:
        try:
            write_checksums(partial)
            _flush(partial)
            # A linked folder of this step holds this very state. One without a link is left over
            # from a run that was resumed at an earlier step, perhaps with another recipe.
            if target.resolve() not in _linked(folder):
                shutil.rmtree(target, ignore_errors=True)
                partial.replace(target)
            _link(folder / LAST, target)
            _remove_unlinked(folder)
        except OSError as error:
            problem = str(error)
    if problem:
        shutil.rmtree(partial, ignore_errors=True)
        kept = find_checkpoint(folder)
        raise CheckpointError(
            f"could not save {target}: {problem}. "
            + (f"The last complete checkpoint is {kept}." if kept else "There is no earlier one.")
        )
    return target


def mark_best(folder: Path, step: int, score: float) -> bool:
    """Notes the score of `folder/step_N`, which says that it was evaluated, and points `best` there
    if the score exceeds that of the best one so far.

    Returns:
        Whether it did; not for a score that is not finite, nor for a step that was not saved.

    Raises:
        CheckpointError: the disk refuses; the earlier best checkpoint stays.
    """
    target = _step_folder(folder, step)
    if not (target / STATE).is_file():
        return False
    better = math.isfinite(score) and score > _best_score(folder)
    try:
        partial = target / f".{SCORE}.partial"
        value = score if math.isfinite(score) else None
        partial.write_text(json.dumps({"score": value}) + "\n", encoding="utf-8")
        partial.replace(target / SCORE)
        if not better:
            return False
        _link(folder / BEST, target)
        _remove_unlinked(folder)
    except OSError as error:
        raise CheckpointError(f"could not make {target} the best checkpoint: {error}.") from error
    return True


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
    places = sorted((place.resolve() for place in folder.glob("step_*")), reverse=True)
    for place in sorted(places, key=lambda place: place != last):
        problem = find_damage(place)
        if not problem:
            if warn is not None:
                problems |= _unfinished(folder, place)
                for name, text in problems.items():
                    warn(f"passed over {folder / name}: {text}; resuming from {place.name}")
            return place
        problems[place.name] = problem
    for name, problem in problems.items():
        raise CheckpointError(f"cannot resume from {folder / name}: {problem}")
    raise CheckpointError(f"nothing to resume: {folder} holds no complete checkpoint")


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
        # To the CPU first: every process would otherwise load the tensors of GPU 0 onto GPU 0.
        state: dict[str, Any] = torch.load(
            checkpoint / STATE, map_location="cpu", weights_only=True
        )
        rng_file = checkpoint / f"rng_{process_index}.pt"
        if rng_file.is_file():  # absent when resumed with more processes than before
            _restore_rng(torch.load(rng_file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot resume from {checkpoint}: {reason}") from error
    return state


def known_classes(checkpoint: Path) -> tuple[str, ...] | None:
    """The class names that a run, a model of ours or one of `transformers` brings, or None.

    Raises:
        CheckpointError: the file with the names is damaged.
        ValueError: the model's configuration is.
    """
    if (checkpoint / DATASET).is_file():
        return load_info(checkpoint).classes
    if not (checkpoint / CONFIG_FILE).is_file():
        return None
    values = read_json(checkpoint / CONFIG_FILE)
    names = values.get("classes") or (class_names(values) if "id2label" in values else None)
    if names is None or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None  # transformers' own names for classes without any
    return tuple(names)


def resolve_checkpoint(path: Path) -> Path:
    """Accepts a run folder, its `checkpoints` folder, a link or a step folder; returns the step
    folder. Other folders of models and weight files stand for themselves; see `find_local`.

    Raises:
        CheckpointError: nothing there.
    """
    found = find_local(path)
    if found:
        return found.resolve()
    raise CheckpointError(
        f"no checkpoint at {path}: expected a run folder, one with a config.json, or a weight file "
        f"({', '.join(sorted(WEIGHT_SUFFIXES))})"
    )


def load_recipe(checkpoint: Path, overrides: list[str]) -> Config:
    """The recipe that the checkpoint was trained with.

    Raises:
        CheckpointError: the folder holds none.
        ConfigError: an override does not fit.
    """
    recipe = checkpoint / RECIPE
    if not recipe.is_file():
        raise CheckpointError(f"{checkpoint} holds no {RECIPE}; name the recipe with --config")
    return load_config(recipe, overrides)


def load_prediction_recipe(checkpoint: Path, model: SegmentationModel) -> Config:
    """The recipe of a checkpoint; of one from elsewhere, its model and its sizes of images.

    Raises:
        ConfigError: the recipe does not fit this version.
        ValueError: the folder's pre-processing cannot be followed.
    """
    if (checkpoint / RECIPE).is_file():
        return load_recipe(checkpoint, [])
    processor = ImageProcessor.from_pretrained(checkpoint)
    data = ShapesConfig(test_short_side=processor.short_side, test_max_side=processor.max_side)
    return Config(model=model.config, data=data)


def load_info(checkpoint: Path, model: SegmentationModel | None = None) -> DatasetInfo:
    """Class names and colours saved with the checkpoint.

    Args:
        checkpoint: its folder.
        model: tells the classes where the checkpoint is from elsewhere; all of them are stuff.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = checkpoint / DATASET
    if model is not None and not file.is_file():
        count = model.num_classes
        classes = model.class_names or tuple(f"class {index}" for index in range(count))
        return DatasetInfo(classes, frozenset(), palette(count), tuple(range(count)))
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return DatasetInfo(
            classes=tuple(values["classes"]),
            things=frozenset(values["things"]),
            colors=tuple((red, green, blue) for red, green, blue in values["colors"]),
            category_ids=tuple(values["category_ids"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read the class names in {file}: {error}") from error


def info_to_json(info: DatasetInfo) -> str:
    values = asdict(info)
    values["things"] = sorted(info.things)
    return json.dumps(values, indent=1)


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _flush(folder: Path) -> None:
    """Forces the files to disk: a rename must not outlive a power cut that the contents did not."""
    for path in (*folder.iterdir(), folder):
        with _open_descriptor(path) as descriptor:
            os.fsync(descriptor)


@contextmanager
def _open_descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unfinished(folder: Path, taken: Path) -> dict[str, str]:
    """Saves after that of `taken` that something ended before they were complete."""
    names = (place.name for place in folder.glob(".step_*.partial"))
    return {name: "its save was not finished" for name in names if name[1:] > taken.name}


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}"


def _best_score(folder: Path) -> float:
    try:
        values = json.loads((folder / BEST / SCORE).read_text(encoding="utf-8"))
        return float(values["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return -math.inf


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    if link.is_dir() and not link.is_symlink():  # a copy of the run that followed its links
        shutil.rmtree(link)
    temporary.replace(link)


def _linked(folder: Path) -> set[Path]:
    return {(folder / name).resolve() for name in (LAST, BEST)}


def _remove_unlinked(folder: Path) -> None:
    """Removes superseded step folders and what killed processes left half written."""
    kept = _linked(folder)
    for step_folder in (*folder.glob("step_*"), *folder.glob(".step_*.partial")):
        if step_folder.resolve() not in kept:
            shutil.rmtree(step_folder, ignore_errors=True)
