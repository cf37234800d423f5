"""Finds the checkpoint in the folder of a run, in one of a model, or a weight file."""

from __future__ import annotations

import re
from pathlib import Path

from maskformer.weights.files import CONFIG_FILE, WEIGHT_SUFFIXES

STATE, RECIPE = "training_state.pt", "recipe.yaml"
LAST, BEST = "last", "best"
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights beside a `config.json`; the first that is there counts."""
_OFFICIAL_SUFFIXES = frozenset({".pkl", ".pth"})
_STEP_FOLDER = re.compile(rb"(step_\d+)\n?")


def find_checkpoint(folder: Path, name: str = LAST) -> Path | None:
    """The step folder that `last` or `best` names, or None.

    Where copying a run has lost the links, the newest step folder is the last.

    Args:
        folder: the run's `checkpoints` folder.
    """
    target = follow(folder / name)
    if (target / STATE).is_file():
        return target.resolve()
    if name == LAST:
        found = [state.parent for state in folder.glob(f"step_*/{STATE}")]
        return max(found).resolve() if found else None
    return None


def follow(link: Path) -> Path:
    """The step folder beside it that a small file names, which stands for a link where the file
    system has none; everything else as it is.
    """
    return link.with_name(name) if (name := _named_in(link)) else link


def is_link(path: Path) -> bool:
    """Whether it is a link, or a file that stands for one."""
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
    """The folder or file that holds the model at a path, or None.

    Of a run folder or its `checkpoints` folder, that is the best checkpoint, or the last where
    none is best yet. A folder of a model and a weight file stand for themselves; a weight file that
    is part of a folder with a `config.json` stands for that folder, and a folder without one for
    the one `.pkl` or `.pth` file in it.
    """
    path = follow(path)
    for folder in (path / "checkpoints", path):
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
    """Whether it is the weight file that a model's folder is read from."""
    if not file.is_file() or not (file.parent / CONFIG_FILE).is_file():
        return False
    weights = (name for name in FOLDER_WEIGHTS if (file.parent / name).is_file())
    return file.name == next(weights, None)
