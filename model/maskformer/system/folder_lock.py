"""Locks that let only one process, or one group of processes, use a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from maskformer.errors import RunInUseError
from maskformer.system.text import escape

if TYPE_CHECKING:
    from accelerate import PartialState

LOCK = ".maskformer-lock"

_locked: set[tuple[int, int]] = set()
_ATTEMPTS = 20
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


@contextmanager
def lock_folder(folder: Path) -> Iterator[str]:
    """Lock a folder against other processes.

    The operating system releases the lock when the process ends in any way, so it is never stale.

    Yields:
        The reason if the folder cannot be locked because its file system does not support locks,
        else "".

    Raises:
        RunInUseError: another process has locked it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        with _open_lock(folder, os.O_RDWR | os.O_CREAT) as descriptor:
            problem = _lock(descriptor, fcntl.LOCK_EX, folder)
            identity = _identity(os.fstat(descriptor))
            if identity != _identity_of(folder / LOCK):
                continue  # the previous owner removed the file in the meantime
            _locked.add(identity)
            try:
                with suppress(OSError):  # only needed for the message to other processes
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
                yield problem
            finally:
                _locked.discard(identity)
            return
    raise RunInUseError(f"{folder} is in use: other processes repeatedly lock it")


@contextmanager
def lock_output(
    folder: Path, processes: PartialState | None, warn: Callable[[str], None]
) -> Iterator[None]:
    """Lock an output folder against other calls, and remove the lock file afterwards.

    Args:
        folder: the output folder.
        processes: the processes that share the work, all of which must call this.
        warn: called if the folder cannot be locked.

    Raises:
        RunInUseError: another process is using the folder.
    """
    check_not_in_use(folder)
    if processes is not None:
        processes.wait_for_everyone()  # all must have checked before the first one takes the lock
    if processes is not None and not processes.is_main_process:
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with lock_folder(folder) as problem:
        if problem:
            warn(f"{escape(folder)} cannot be locked against other calls: {problem}")
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink()
                for path in new:  # removes only folders that are empty
                    path.rmdir()


def check_not_in_use(folder: Path) -> None:
    """Check that no other process is using a folder.

    Raises:
        RunInUseError: another process is using it.
    """
    if (folder / LOCK).is_file():
        # A shared lock, because several processes may check at once. The file may be missing,
        # because `lock_output` removes it.
        with suppress(FileNotFoundError), _open_lock(folder, os.O_RDONLY) as descriptor:
            _lock(descriptor, fcntl.LOCK_SH, folder)


@contextmanager
def _open_lock(folder: Path, flags: int) -> Iterator[int]:
    file = folder / LOCK
    if _identity_of(file) in _locked:
        # Opening the file again, and closing it, would release this process's own lock.
        raise RunInUseError(f"{folder} is in use: this process is already using it")
    descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, folder: Path) -> str:
    try:
        # A record lock, which forked data loader workers do not keep when this process dies.
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return str(error)
        raise RunInUseError(_in_use(folder, descriptor)) from None
    return ""


def _identity_of(file: Path) -> tuple[int, int] | None:
    try:
        return _identity(file.stat())
    except FileNotFoundError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _in_use(folder: Path, descriptor: int) -> str:
    try:
        values = json.loads(os.pread(descriptor, 1000, 0))
        who = f"process {values['pid']} on {escape(values['host'])}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{folder} is in use by {who}; wait for it or choose another --output"
