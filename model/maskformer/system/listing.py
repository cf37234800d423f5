"""Listing of the files in and below a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from maskformer.errors import DatasetError
from maskformer.system.text import escape

SHOWN = 3
PREDICTIONS, EVALUATION, RUN = ".predictions", ".maskformer-evaluation", ".maskformer-run"
"""Starts of the names of files that mark folders with results of this program."""
MARKERS = (PREDICTIONS, EVALUATION, RUN)


@dataclass(frozen=True)
class Listing:
    """The files below a folder, and the entries that were skipped.

    Attributes:
        files: the paths relative to the folder, sorted.
        hidden: files and folders whose name begins with a dot.
        repeated: links to folders that were read already, or to parent folders.
        unreadable: folders without permission to read them.
        results: files in subfolders that contain one of `MARKERS`.
    """

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def skipped(self) -> list[str]:
        """Return a phrase for each reason, such as `2 hidden (._a.jpg, .ipynb_checkpoints)`."""
        reasons = {
            "hidden": self.hidden,
            "linked folders that were read already": self.repeated,
            "folders that cannot be read": self.unreadable,
            "results of earlier calls": self.results,
        }
        return [count_names(names, what) for what, names in reasons.items() if names]


def count_names(names: Iterable[str], what: str) -> str:
    """Return the number of names, what they are, and the first of them, in one phrase."""
    ordered = sorted(names)
    first = ", ".join(map(escape, ordered[:SHOWN])) + (", ..." if len(ordered) > SHOWN else "")
    return f"{len(ordered):,} {what} ({first})"


def list_folder(folder: Path) -> Listing:
    """List all files below a folder.

    Hidden files and folders (`.name`), runs and results of earlier calls in subfolders, and folders
    that cannot be read are skipped. Links to folders are followed, and each folder is read once,
    even if several links point to it or links form a cycle.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    listing = Listing()
    seen: set[tuple[int, int]] = set()
    folders, links = [("", False)], deque[tuple[str, bool]]()
    while folders or links:
        # Links come last, so that folders are listed under their own names.
        inner, ours = folders.pop() if folders else links.popleft()
        try:
            status = (folder / inner).stat()
            if (status.st_dev, status.st_ino) in seen:
                listing.repeated.append(inner)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / inner) as scan:
                entries = list(scan)
        except OSError as error:
            if inner:
                listing.unreadable.append(inner)
                continue
            reason = error.strerror if folder.is_dir() else why_absent(folder)
            raise DatasetError(f"folder {escape(folder)} cannot be read: {reason}") from None
        ours = ours or (inner != "" and any(entry.name.startswith(MARKERS) for entry in entries))
        for entry in entries:
            path = f"{inner}/{entry.name}" if inner else entry.name
            if entry.name.startswith("."):
                listing.hidden.append(path)
            elif not _is_folder(entry):
                (listing.results if ours else listing.files).append(path)
            elif entry.is_symlink():
                links.append((path, ours))
            else:
                folders.append((path, ours))
    listing.files.sort()
    return listing


def list_files(folder: Path) -> list[str]:
    """Return `list_folder(folder).files`."""
    return list_folder(folder).files


def names_in(folder: Path) -> dict[str, bool]:
    """Return the names in a folder and whether each is a link, or {} if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except (OSError, ValueError):  # ValueError: not a valid path
        return {}


def why_absent(path: Path) -> str:
    """Say which part of a path does not exist, as in `the folder runs holds a, b, but no c`."""
    folder = path.parent
    # Not `Path.is_dir`, which raises an error if a name is too long.
    while not os.path.isdir(folder) and folder != folder.parent:  # noqa: PTH112
        path, folder = folder, folder.parent
    if os.path.exists(path):  # noqa: PTH110
        return f"{escape(path)} is a file"
    names = sorted(name for name in names_in(folder) if not name.startswith("."))
    first = ", ".join(map(escape, names[:SHOWN])) + ", ..." * (len(names) > SHOWN)
    where = escape(folder.resolve() if folder == Path() else folder)
    return f"the folder {where} holds {first or 'nothing'}, but no {escape(path.name)}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
