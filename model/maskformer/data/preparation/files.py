"""Conversion of many files: in parallel, resumable, and without replacing existing files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from maskformer.data.progress import map_in_threads
from maskformer.errors import DatasetError
from maskformer.system.listing import list_files
from maskformer.system.text import escape
from maskformer.system.writing import remove_partial_files, replace_file

T = TypeVar("T")
R = TypeVar("R")
SHOWN = 5


class Prepared(NamedTuple):
    """The result of a preparation.

    Attributes:
        images: the number of images in all splits.
        written: the number of files that were missing and have been written.
        folders: the folders of the results.
    """

    images: int
    written: int
    folders: tuple[Path, ...]


def write_missing(file: Path, write: Callable[[Path], object]) -> int:
    """Write a file unless it exists. As files are written atomically, an existing one is complete.

    Args:
        file: the file.
        write: writes to the path that it is given, whose name has no suffix.

    Returns:
        The number of files written: 0 or 1.

    Raises:
        DiskFullError, OSError: the file cannot be written.
    """
    if file.exists():
        return 0
    replace_file(file, write)
    return 1


def for_each(items: Sequence[T], work: Callable[[T], R], title: str) -> list[R]:
    """Call `work` for each item in several threads, with a progress bar.

    A bad file does not stop it. An interruption does, after the items in progress.

    Raises:
        DatasetError: items could not be used. It names the first of them, and is raised after all
            others are finished.
    """

    def tried(item: T) -> R | DatasetError:
        try:
            return work(item)
        except DatasetError as error:
            return error

    results = list(map_in_threads(tried, items, title))
    errors = [result for result in results if isinstance(result, DatasetError)]
    if errors:
        listed = "\n".join(f"  {error}" for error in errors[:SHOWN])
        more = f"\n  and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise DatasetError(
            f"{len(errors)} of {len(items)} images cannot be prepared:\n{listed}{more}\n"
            "the others are done; fix or remove these and run the command again"
        )
    return [result for result in results if not isinstance(result, DatasetError)]


def names_with(folder: Path, suffix: str, expected: str) -> list[str]:
    """Return the names below a folder that have a suffix, without the suffix, sorted.

    Args:
        folder: the folder.
        suffix: the suffix.
        expected: a description of the expected ROOT, for the message.

    Raises:
        DatasetError: the folder does not exist, or has no such file.
    """
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {escape(folder)}; expected {expected}")
    names = [name.removesuffix(suffix) for name in list_files(folder) if name.endswith(suffix)]
    if not names:
        raise DatasetError(f"{escape(folder)} has no file *{suffix}; expected {expected}")
    return names


def make_folders(folders: Sequence[Path]) -> None:
    """Create the folders of the results, and remove partial files of a killed run in them."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folders)
