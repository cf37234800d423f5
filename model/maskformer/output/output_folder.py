"""Checks of output folders before the work whose results are written to them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from maskformer.errors import OutputError
from maskformer.system.text import escape
from maskformer.system.writing import existing_parent

METRICS = "metrics.json"
PREDICTIONS = "predictions"
"""The folder of the pictures of an evaluation."""
CONFUSION = "confusion_matrix"
"""The name of a JSON file and of a picture, without suffix."""


def check_output_folder(folder: Path) -> None:
    """Check that a folder can be created and written, before hours of work depend on it.

    Raises:
        NotADirectoryError: the folder or one of its parents is a file or a dangling link.
        PermissionError: the folder cannot be written.
    """
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise NotADirectoryError(
                f"{folder} cannot be an output folder: {path} is a link to a missing target"
            )
    parent = existing_parent(folder)
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder} cannot be an output folder: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be an output folder: {parent} cannot be written")


def check_subfolders(folder: Path, names: Iterable[str]) -> None:
    """Check that no subfolder is a link to a place outside of the folder.

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        check_inside(folder, folder / name)


def check_inside(folder: Path, path: Path) -> None:
    """Check that a path is inside a folder after links are followed.

    Raises:
        ValueError: it is not.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{escape(path)} leads out of the output folder through a link, to "
            f"{escape(path.resolve())}: remove the link or choose another output folder"
        )


def existing_names(folder: Path, files: Iterable[str], subfolders: Iterable[str]) -> list[str]:
    """Return which of the files and subfolders to be written already exist. Subfolders that are
    empty, or have only partial files of a killed process, do not count.
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
