"""Which files are in a folder, and below it."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from maskformer.errors import DatasetError


def list_files(folder: Path) -> list[str]:
    """All files below a folder, as sorted paths relative to it.

    Hidden files and folders (`.name`) are left out. Links to folders are followed, and every folder
    is read once, however many links lead to it, or back. Folders that may not be read are left out.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [""], deque[str]()
    while folders or links:
        # Links come last: a folder is called by its own name rather than by a link's.
        inner = folders.pop() if folders else links.popleft()
        try:
            status = (folder / inner).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / inner) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if inner:
                continue
            raise DatasetError(f"folder {folder} cannot be read: {error}") from None
        for entry in visible:
            path = f"{inner}/{entry.name}" if inner else entry.name
            if not _is_folder(entry):
                found.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                folders.append(path)
    return sorted(found)


def names_in(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except (OSError, ValueError):  # no such folder, or no name that could be one
        return {}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
