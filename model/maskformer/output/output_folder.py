"""Output folders, looked at before the work that fills them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from maskformer.errors import OutputError
from maskformer.system.text import escape
from maskformer.system.writing import existing_parent

METRICS = "metrics.json"
CONFUSION = "confusion_matrix"
"""Of a JSON file and a picture."""


def check_output_folder(folder: Path) -> None:
    """Refuses a folder that cannot be created or written, before hours of work depend on it.

    Raises:
        NotADirectoryError: it, or what would hold it, is a file.
        PermissionError: it cannot be written.
    """
    parent = existing_parent(folder)
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder} cannot be an output folder: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be an output folder: {parent} cannot be written")


def check_subfolders(folder: Path, names: Iterable[str]) -> None:
    """Refuses links that would lead what is written in a folder to somewhere else.

    Raises:
        ValueError: one of the subfolders is such a link.
    """
    for name in names:
        check_inside(folder, folder / name)


def check_inside(folder: Path, path: Path) -> None:
    """Refuses a path that a link leads out of the folder.

    Raises:
        ValueError: it is not.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{escape(path)} leads out of the output folder, to {escape(path.resolve())}: remove "
            "the link or choose another output folder"
        )


def names_in_the_way(folder: Path, files: Iterable[str], subfolders: Iterable[str]) -> list[str]:
    """Which of the names that are to be written are there, and were not left half written by a
    killed process.
    """
    found = [name for name in files if os.path.lexists(folder / name)]
    for name in subfolders:
        path = folder / name
        if path.is_dir():
            if set(path.iterdir()) - set(path.glob(".*.partial")):
                found.append(f"{name}/")
        elif os.path.lexists(path):
            found.append(name)
    return found
