"""Atomic writing of files, and checks of the disk space."""

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
"""Pattern of the names of partial files, which a killed process leaves behind."""

_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems that cannot flush files."""
_NO_FOLDER_SYNC = _NO_SYNC | {errno.EACCES, errno.EISDIR}


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: under a temporary name in the same folder, flushed to disk, then
    renamed.

    If `file` is a link, the link is replaced, not followed. The temporary name does not contain the
    name of the file, which may already have the largest length that the file system supports.

    Args:
        file: the file, whose folder is created if necessary.
        write: writes to the path that it is given.

    Raises:
        DiskFullError: there is not enough disk space; an existing file is kept.
        OSError: the file cannot be written; an existing one is kept.
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
        if str(error.filename) == str(partial):  # name the file that the user knows
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    replace_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(file: Path, values: Any, *, indent: int | None = None) -> None:
    """Write a JSON file, in ASCII, atomically."""
    write_text(file, json.dumps(values, indent=indent) + "\n")


def sync(file: Path) -> None:
    """Flush a file to disk, if the file system supports it, so that after a power failure a renamed
    file cannot be incomplete.
    """
    _sync(file, _NO_SYNC)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, if the file system supports it."""
    _sync(folder, _NO_FOLDER_SYNC)


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
    """Remove the partial files of killed processes directly in these folders."""
    for folder in folders:
        for file in folder.glob(PARTIAL):
            if file.is_file() and not file.is_symlink():
                with suppress(OSError):
                    file.unlink()


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes on the disk of a folder, which need not exist; None if unknown."""
    try:
        usage = shutil.disk_usage(existing_parent(folder))
    except OSError:
        return None
    return usage.free if usage.total else None  # some network drives report 0 of 0


def free_megabytes(folder: Path) -> str:
    """Return the free space for messages, such as `12 MB`."""
    free = free_bytes(folder)
    return "an unknown number of MB" if free is None else megabytes(free)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e7 else f"{count / 1e6:,.0f} MB"


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Check that there is enough disk space.

    Raises:
        DiskFullError: less than `needed` bytes are free.
    """
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise DiskFullError(
            f"{purpose} needs {megabytes(needed)} in {folder}, but only {megabytes(free)} are "
            "free: free disk space or choose another folder"
        )


def existing_parent(folder: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
