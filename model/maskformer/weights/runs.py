"""Where checkpoints lie: in the folder of a run, in one of a model, or as a weight file."""

from __future__ import annotations

from pathlib import Path

from maskformer.weights.files import WEIGHT_SUFFIXES
from maskformer.weights.huggingface import CONFIG_FILE

STATE = "training_state.pt"
LAST, BEST = "last", "best"
_OFFICIAL_SUFFIXES = frozenset({".pkl", ".pth"})


def find_checkpoint(folder: Path, name: str = LAST) -> Path | None:
    """The step folder that `last` or `best` names, or None.

    Where copying a run has lost the links, the newest step folder is the last.

    Args:
        folder: the run's `checkpoints` folder.
    """
    if (folder / name / STATE).is_file():
        return (folder / name).resolve()
    if name == LAST:
        found = [place.parent for place in folder.glob(f"step_*/{STATE}")]
        return max(found).resolve() if found else None
    return None


def find_local(path: Path) -> Path | None:
    """The folder or file that holds the model at a path, or None.

    Of a run folder or its `checkpoints` folder, that is the best checkpoint, or the last where
    none is best yet. A folder of a model and a weight file stand for themselves; a folder without
    `config.json` stands for the one `.pkl` or `.pth` file in it.
    """
    for folder in (path / "checkpoints", path):
        for name in (BEST, LAST):
            found = find_checkpoint(folder, name)
            if found:
                return found
    if (path / CONFIG_FILE).is_file() or (path.is_file() and path.suffix in WEIGHT_SUFFIXES):
        return path
    files = [file for file in path.glob("*") if file.suffix in _OFFICIAL_SUFFIXES]
    return files[0] if len(files) == 1 and files[0].is_file() else None
