"""Files that are complete or absent, and room on the disk for them."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskformer.errors import DiskFullError

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
PARTIAL = ".????????.partial"
"""The names of files that are being written; a killed process leaves one behind."""

_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EISDIR})


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Writes under a temporary name beside `file`, flushes it to disk and puts it in its place.

    A link in that place is replaced, not followed. The temporary name is short: the file's own may
    be as long as the file system takes.

    Args:
        file: its folder is made if need be.
        write: writes the file it is given.

    Raises:
        DiskFullError: no room; an old file stays.
        OSError: the file cannot be written; an old one stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        sync(partial)
        partial.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        if error.errno in FULL_DISK and not isinstance(error, DiskFullError):
            raise DiskFullError(
                f"could not write {file}: {error.strerror}; {free_megabytes(file.parent)} are free"
            ) from error
        if str(error.filename) == str(partial):  # a name that nobody knows
            error.filename, error.filename2 = str(file), None
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """`replace_file` with text in UTF-8."""
    replace_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(file: Path, values: Any, *, indent: int | None = None) -> None:
    """`replace_file` with JSON in ASCII."""
    write_text(file, json.dumps(values, indent=indent) + "\n")


def sync(file: Path) -> None:
    """Forces a file to disk: a rename must not outlive a power cut that the content did not."""
    _sync(file, frozenset())


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to disk, where the file system can."""
    _sync(folder, _NO_SYNC)


def _sync(path: Path, ignored: frozenset[int]) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in ignored:
            raise


def remove_partial_files(folders: Iterable[Path]) -> None:
    """Removes what killed processes left half written directly in these folders."""
    for folder in folders:
        for file in folder.glob(PARTIAL):
            if file.is_file() and not file.is_symlink():
                with suppress(OSError):
                    file.unlink()


def free_bytes(folder: Path) -> int | None:
    """Free bytes for a folder that may yet have to be made; None where nobody knows."""
    try:
        usage = shutil.disk_usage(existing_parent(folder))
    except OSError:
        return None
    return usage.free if usage.total else None  # some network drives report 0 of 0


def free_megabytes(folder: Path) -> str:
    """For messages, such as `12 MB`."""
    free = free_bytes(folder)
    return "an unknown number of MB" if free is None else megabytes(free)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e7 else f"{count / 1e6:,.0f} MB"


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuses work whose result would find no room.

    Raises:
        DiskFullError: less than `needed` bytes are free.
    """
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise DiskFullError(
            f"{purpose} needs {megabytes(needed)} in {folder}, {megabytes(free)} are free: free "
            "room or choose another folder"
        )


def existing_parent(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
