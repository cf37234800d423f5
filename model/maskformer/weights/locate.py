"""Finding the checkpoint in a run folder, the folder of a model or a weight file."""

from __future__ import annotations

import re
from pathlib import Path

from maskformer.weights.files import CONFIG_FILE, WEIGHT_SUFFIXES, WEIGHTS_FILE

STATE, RECIPE = "training_state.pt", "recipe.yaml"
CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints in a run folder."""
LAST, BEST = "last", "best"
FOLDER_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")
"""Weight files next to a `config.json`, of which the first that exists is used."""
_OFFICIAL_SUFFIXES = frozenset({".pkl", ".pth"})
_STEP = re.compile(r"step_(\d+)")
_STEP_FOLDER = re.compile(rb"(step_\d+)\n?")


def find_checkpoint(folder: Path, name: str = LAST) -> Path | None:
    """Return the step folder that `last` or `best` points to, or None.

    If the links were lost in copying a run, `last` is the newest step folder.

    Args:
        folder: the run's `checkpoints` folder.
        name: `last` or `best`.
    """
    target = follow(folder / name)
    if (target / STATE).is_file():
        return target.resolve()
    if name == LAST:
        found = [state.parent for state in folder.glob(f"step_*/{STATE}")]
        return max(found, key=by_step).resolve() if found else None
    return None


def step_folders(folder: Path) -> list[Path]:
    """Return the step folders in a run's `checkpoints` folder, in the order of their steps. A copy
    that the user named after its step, such as `step_0000002_good`, is none of them.
    """
    return sorted((f for f in folder.glob("step_*") if _STEP.fullmatch(f.name)), key=by_step)


def by_step(folder: Path) -> tuple[int, bool, str]:
    """Return a sort key of step folders and copies of them: the number, which may have more than
    seven digits. Copies come before their original.
    """
    found = _STEP.match(folder.name)
    number = int(found[1]) if found else -1
    return number, _STEP.fullmatch(folder.name) is not None, folder.name


def follow(link: Path) -> Path:
    """If a path is a small file that replaces a link, as on file systems without links, return the
    step folder that it names. Return any other path unchanged.
    """
    return link.with_name(name) if (name := _named_in(link)) else link


def is_link(path: Path) -> bool:
    """Whether a path is a link, or a file that replaces one."""
    return path.is_symlink() or _named_in(path) is not None


def _named_in(file: Path) -> str | None:
    try:
        if file.name not in (LAST, BEST) or not file.is_file() or file.stat().st_size > 64:
            return None
        found = _STEP_FOLDER.fullmatch(file.read_bytes())
    except OSError:
        return None
    return found[1].decode() if found else None


def find_local(path: Path) -> Path | None:
    """Find the folder or file with the model that a path refers to; None if there is none.

    For a run folder or its `checkpoints` folder, this is the best checkpoint, or the last one if no
    best one exists yet. For a folder with a `config.json`, or for its weight file, it is that
    folder. For any other weight file, it is the file, and for any other folder, the `.pkl` or
    `.pth` file in it if there is exactly one.
    """
    path = follow(path)
    for folder in (path / CHECKPOINTS, path):
        for name in (BEST, LAST):
            found = find_checkpoint(folder, name)
            if found:
                return found
    if _is_of_folder(path):
        return path.parent
    if (path / CONFIG_FILE).is_file() or (path.is_file() and path.suffix in WEIGHT_SUFFIXES):
        return path
    files = [file for file in path.glob("*") if file.suffix in _OFFICIAL_SUFFIXES]
    return files[0] if len(files) == 1 and files[0].is_file() else None


def _is_of_folder(file: Path) -> bool:
    """Whether a file is the weight file that is read for the folder of a model."""
    if not file.is_file() or not (file.parent / CONFIG_FILE).is_file():
        return False
    weights = (name for name in FOLDER_WEIGHTS if (file.parent / name).is_file())
    return file.name == next(weights, None)
