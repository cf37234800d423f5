"""Checkpoints that are complete or absent, never half.

    checkpoints/
      step_0001000/     config.json, model.safetensors (what `from_pretrained` reads),
                        recipe.yaml, dataset.json,
                        training_state.pt, rng_0.pt … one per process, SHA256SUMS
      last, best        links to the step folders; those evaluated also hold score.json

A folder is written under a temporary name, flushed to disk and renamed; links are replaced
atomically. Where the file system has no links, `last` and `best` are files that hold the name of
the step folder. Step folders that no link names are removed, but for the newest `train.keep`. The
folder must be on a file system that all processes share.
"""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from maskformer.config.load import load_config, override_config, to_yaml
from maskformer.config.schema import Config, ShapesConfig
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import CheckpointError, ConfigError, DiskFullError
from maskformer.inference.image_processor import ImageProcessor
from maskformer.modeling.base import SegmentationModel
from maskformer.system.documents import read_mapping, read_text
from maskformer.system.version import installed, writer
from maskformer.system.writing import (
    FULL_DISK,
    check_space,
    free_bytes,
    free_megabytes,
    megabytes,
    sync,
    sync_folder,
    write_json,
    write_text,
)
from maskformer.training.checksums import find_damage, write_checksums
from maskformer.training.kept_checkpoints import (
    linked,
    make_room,
    remove_checkpoints,
    remove_old,
    superseded,
)
from maskformer.training.run_folder import remove_checkpoint, size_of
from maskformer.weights.files import WEIGHT_SUFFIXES
from maskformer.weights.locate import BEST, LAST, RECIPE, STATE, find_checkpoint, find_local, follow
from maskformer.weights.open import find, is_hub_id, read_class_names
from maskformer.weights.safe_pickle.unpickle import read_pickle

DATASET = "dataset.json"
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
    needed = checkpoint_size(model, state["optimizer"]) + _size(state.get("weights", {}).values())
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


def weights_size(model: torch.nn.Module) -> int:
    """Bytes of a file with the model's weights."""
    return _size(model.state_dict().values())


def checkpoint_size(model: torch.nn.Module, optimizer: Mapping[str, Any] | None = None) -> int:
    """Bytes of a checkpoint, of AdamW's two moments before it has any."""
    moments = [
        value
        for entry in (optimizer or {}).get("state", {}).values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    ] or [p for p in model.parameters() if p.requires_grad for _ in range(2)]
    return weights_size(model) + _size(moments)


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_room(run: Path, needed: int, *, overwrite: bool, keep: int = 1) -> str:
    """Refuses to train what could not be saved.

    Args:
        run: the run folder.
        needed: bytes of a checkpoint.
        overwrite: an earlier run in the folder will be removed.
        keep: how many of the newest checkpoints stay besides the best.

    Returns:
        A warning where there is room for fewer checkpoints than a run keeps, else "".

    Raises:
        DiskFullError: no room for one checkpoint.
    """
    folder = run / "checkpoints"
    free = free_bytes(run)
    if free is None:
        return ""
    held = sum(size_of(step) for step in folder.glob("step_*"))
    removable = held if overwrite else sum(map(size_of, superseded(folder)))
    purpose = "a checkpoint of this model"
    if free + removable < needed:
        check_space(run, needed, purpose)
    if free + held < (keep + 2) * needed:
        newest = "last" if keep == 1 else f"last {keep}"
        return (
            f"{purpose} needs {megabytes(needed)}, {megabytes(free)} are free: too little for the "
            f"best, the {newest} and a new one, so that the last is removed before a new one is "
            "written"
        )
    return ""


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


def known_classes(checkpoint: Path) -> tuple[str, ...] | None:
    """The class names that a run, a model of ours or one of `transformers` brings, or None.

    Raises:
        CheckpointError: the file with the names is damaged.
        ValueError: the model's configuration is.
    """
    if (checkpoint / DATASET).is_file():
        return load_info(checkpoint).classes
    return read_class_names(checkpoint)


def resolve_checkpoint(path: Path) -> Path:
    """Accepts a run folder, its `checkpoints` folder, a link or a step folder; returns the step
    folder. Other folders of models and weight files stand for themselves (see `find_local`), and
    `owner/name`, where no such folder is, for a model on the hub.

    Raises:
        CheckpointError: nothing there.
        HubError: it reads like an id on the hub, which cannot be reached or has no such model.
    """
    found = find_local(path)
    if found:
        return found.resolve()
    if not path.exists() and is_hub_id(path):
        return find(path).resolve()
    raise CheckpointError(
        f"no checkpoint at {path}: expected a run folder, one with a config.json, a weight file "
        f"({', '.join(sorted(WEIGHT_SUFFIXES))}), or an id owner/name on the Hugging Face hub"
    )


def load_recipe(checkpoint: Path, overrides: list[str]) -> Config:
    """The recipe that the checkpoint was trained with.

    Raises:
        CheckpointError: the folder holds none.
        ConfigError: an override does not fit, or the recipe is of another version.
    """
    recipe = checkpoint / RECIPE
    if not recipe.is_file():
        raise CheckpointError(f"{checkpoint} holds no {RECIPE}; name the recipe with --config")
    try:
        load_config(recipe)
    except ConfigError as error:
        raise ConfigError(
            f"{recipe} does not fit maskformer {installed()}; it was written by "
            f"{writer(read_text(recipe))}: {error}"
        ) from None
    return load_config(recipe, overrides)


def load_prediction_recipe(
    checkpoint: Path, model: SegmentationModel, overrides: list[str]
) -> Config:
    """The recipe of a checkpoint; of one from elsewhere, its model and its sizes of images.

    Args:
        checkpoint: its folder or file.
        model: the one that it holds.
        overrides: `key=value` pairs, as in `load_config`.

    Raises:
        ConfigError: the recipe does not fit this version, or an override does not fit.
        ValueError: the folder's pre-processing cannot be followed.
    """
    if (checkpoint / RECIPE).is_file():
        return load_recipe(checkpoint, overrides)
    processor = ImageProcessor.from_pretrained(checkpoint)
    reader = processor.reader
    data = ShapesConfig(
        test_short_side=processor.short_side,
        test_max_side=processor.max_side,
        channels=reader.channels,
        value_range=reader.scale.value_range,
        percentiles=reader.scale.percentiles,
        exif_orientation=reader.orientation,
    )
    return override_config(Config(model=model.config, data=data), overrides)


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
        values = read_mapping(file)
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
    for file in folder.iterdir():
        sync(file)
    sync_folder(folder)


def _unfinished(folder: Path, taken: Path) -> dict[str, str]:
    """What lies after `taken` and was not completed, or has lost files."""
    found = {step.name: "its save was not finished" for step in folder.glob(".step_*.partial")}
    found |= {step.name: find_damage(step) for step in folder.glob("step_*")}
    return {n: text for n, text in found.items() if text and n.lstrip(".") > taken.name >= "step_"}


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}"


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
