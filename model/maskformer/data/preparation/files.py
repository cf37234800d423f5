"""Many files made of many others: in parallel, resumable, and never over one that is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from maskformer.data.progress import track
from maskformer.errors import DatasetError
from maskformer.system.listing import list_files
from maskformer.system.text import escape
from maskformer.system.writing import remove_partial_files, replace_file

T = TypeVar("T")
R = TypeVar("R")
SHOWN = 5


class Prepared(NamedTuple):
    """What a preparation did.

    Attributes:
        images: of all splits.
        written: files that were missing before.
        folders: where the results are.
    """

    images: int
    written: int
    folders: tuple[Path, ...]


def write_missing(file: Path, write: Callable[[Path], object]) -> int:
    """Writes a file unless it is there: it is then complete, as each appears only as a whole.

    Args:
        write: writes the file that it is given, whose name has no suffix.

    Returns:
        How many files were written: 0 or 1.

    Raises:
        DiskFullError, OSError: it cannot be written.
    """
    if file.exists():
        return 0
    replace_file(file, write)
    return 1


def for_each(items: Sequence[T], work: Callable[[T], R], title: str) -> list[R]:
    """Does the work for each item in several threads and shows how far it is.

    One bad file does not end it. An interruption does, after the items that were begun.

    Raises:
        DatasetError: names the first items that could not be used, after all others were done.
    """

    def tried(item: T) -> R | DatasetError:
        try:
            return work(item)
        except DatasetError as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = list(track(pool.map(tried, items), len(items), title))
    finally:
        pool.shutdown(cancel_futures=True)
    errors = [result for result in results if isinstance(result, DatasetError)]
    if errors:
        listed = "\n".join(f"  {error}" for error in errors[:SHOWN])
        more = f"\n  and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise DatasetError(
            f"{len(errors)} of {len(items)} images cannot be prepared:\n{listed}{more}\n"
            "the others are done; mend or remove these and run the command again"
        )
    return [result for result in results if not isinstance(result, DatasetError)]


def names_with(folder: Path, suffix: str, expected: str) -> list[str]:
    """Names below a folder without the suffix that they have, sorted.

    Args:
        expected: what ROOT should be, for the message.

    Raises:
        DatasetError: there is no such folder, or it has no such file.
    """
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {escape(folder)}; expected {expected}")
    names = [name.removesuffix(suffix) for name in list_files(folder) if name.endswith(suffix)]
    if not names:
        raise DatasetError(f"{escape(folder)} has no file *{suffix}; expected {expected}")
    return names


def make_folders(folders: Sequence[Path]) -> None:
    """Makes the folders of the results; clears away what a killed run left half written there."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folders)
