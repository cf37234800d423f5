"""A folder that one process, or one group of them, works in at a time."""

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
    """Keeps other processes from working in the folder.

    The system ends the lock with the process, however that ends: none is ever stale.

    Yields:
        Why the folder could not be locked, where its file system knows no locks; else "".

    Raises:
        RunInUseError: another process has it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        with _open_lock(folder, os.O_RDWR | os.O_CREAT) as descriptor:
            problem = _lock(descriptor, fcntl.LOCK_EX, folder)
            identity = _identity(os.fstat(descriptor))
            if identity != _identity_of(folder / LOCK):
                continue  # whoever had it removed the file meanwhile
            _locked.add(identity)
            try:
                with suppress(OSError):  # the name in the message is a courtesy
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
                yield problem
            finally:
                _locked.discard(identity)
            return
    raise RunInUseError(f"{folder} is in use: others come and go there")


@contextmanager
def lock_output(
    folder: Path, processes: PartialState | None, warn: Callable[[str], None]
) -> Iterator[None]:
    """Keeps other calls from writing results into the folder; leaves no trace in it.

    Args:
        processes: those that share the work; all call this.
        warn: told where the folder cannot be locked.

    Raises:
        RunInUseError: another process works in it.
    """
    check_not_in_use(folder)
    if processes is not None:
        processes.wait_for_everyone()  # the first one's own lock is no other call's
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
                for path in new:  # where nothing was written into it
                    path.rmdir()


def check_not_in_use(folder: Path) -> None:
    """Refuses a folder that another process works in.

    Raises:
        RunInUseError: one does.
    """
    if (folder / LOCK).is_file():
        # Several processes may ask at once; `lock_output` removes the file in the end.
        with suppress(FileNotFoundError), _open_lock(folder, os.O_RDONLY) as descriptor:
            _lock(descriptor, fcntl.LOCK_SH, folder)


@contextmanager
def _open_lock(folder: Path, flags: int) -> Iterator[int]:
    file = folder / LOCK
    if _identity_of(file) in _locked:
        # Opening the file once more would end this process's own lock when it is closed.
        raise RunInUseError(f"{folder} is in use: this process already works there")
    descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, folder: Path) -> str:
    try:
        # A record lock: forked data workers must not keep it when this process dies.
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
    return f"{folder} is in use: {who} works there; wait for it or choose another --output"
