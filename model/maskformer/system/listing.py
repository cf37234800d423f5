"""Which files are in a folder, and below it."""

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
"""Files, by the start of their names, of folders that this program filled."""
MARKERS = (PREDICTIONS, EVALUATION, RUN)


@dataclass(frozen=True)
class Listing:
    """The files below a folder, and what was passed over there.

    Attributes:
        files: sorted paths relative to the folder.
        hidden: files and folders whose name begins with a dot.
        repeated: links to folders that were read already, or that lead back.
        unreadable: folders that may not be read.
        results: files in folders below that one of `MARKERS` lies in.
    """

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def left_out(self) -> list[str]:
        """A phrase for each reason, such as `2 hidden (._a.jpg, .ipynb_checkpoints)`."""
        reasons = {
            "hidden": self.hidden,
            "linked folders that were read already": self.repeated,
            "folders that may not be read": self.unreadable,
            "results of earlier calls": self.results,
        }
        return [count_names(names, what) for what, names in reasons.items() if names]


def count_names(names: Iterable[str], what: str) -> str:
    """How many there are, what they are, and the first of them."""
    ordered = sorted(names)
    first = ", ".join(map(escape, ordered[:SHOWN])) + (", ..." if len(ordered) > SHOWN else "")
    return f"{len(ordered):,} {what} ({first})"


def list_folder(folder: Path) -> Listing:
    """All files below a folder.

    Hidden files and folders (`.name`) are left out, and so are runs and results of earlier calls in
    folders below. Links to folders are followed, and every folder
    is read once, however many links lead to it, or back. Folders that may not be read are left out.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    listing = Listing()
    seen: set[tuple[int, int]] = set()
    folders, links = [("", False)], deque[tuple[str, bool]]()
    while folders or links:
        # Links come last: a folder is called by its own name rather than by a link's.
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
    """`list_folder(folder).files`."""
    return list_folder(folder).files


def names_in(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except (OSError, ValueError):  # no such folder, or no name that could be one
        return {}


def why_absent(path: Path) -> str:
    """Where a path that leads nowhere ends: `the folder runs holds a, b, but no c`."""
    folder = path.parent
    # `Path.is_dir` raises where names are too long.
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
    except OSError:  # a link that leads to itself
        return False
