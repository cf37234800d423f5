"""Output folders, looked at before the work that fills them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from maskformer.errors import OutputError
from maskformer.system.text import escape
from maskformer.system.writing import existing_parent


def check_output_folder(folder: Path) -> None:
    """Refuses a folder that could not be made or written: hours later it would be too late.

    Raises:
        NotADirectoryError: it, or what would hold it, is a file.
        PermissionError: it cannot be written.
    """
    place = existing_parent(folder)
    if not place.is_dir():
        raise NotADirectoryError(f"{folder} cannot be an output folder: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be an output folder: {place} cannot be written")


def check_subfolders(folder: Path, names: Iterable[str]) -> None:
    """Refuses links that would lead what is written in a folder to somewhere else.

    Raises:
        ValueError: one of the subfolders is such a link.
    """
    for name in names:
        check_inside(folder, folder / name)


def check_inside(folder: Path, place: Path) -> None:
    """Refuses a place that is, by a link, not in the folder.

    Raises:
        ValueError: it is not.
    """
    if not place.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{escape(place)} leads out of the output folder, to {escape(place.resolve())}: remove "
            "the link or choose another output folder"
        )
