"""The folder of a training run: whose it is, who works in it, and what may be removed from it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from maskformer.errors import RunInUseError
from maskformer.output.output_folder import CONFUSION, METRICS, names_in_the_way
from maskformer.system.listing import names_in
from maskformer.system.text import encodable, escape
from maskformer.system.writing import remove_partial_files, write_json
from maskformer.weights.files import CONFIG_FILE
from maskformer.weights.locate import BEST, LAST, RECIPE, STATE, is_link
from maskformer.weights.native import LIBRARY

MARKER = ".maskformer-run"
"""JSON: says that the folder is a run, and which pictures it has drawn."""
LOCK = ".maskformer-lock"
CHECKPOINTS, TENSORBOARD, PREDICTIONS = "checkpoints", "tensorboard", "predictions"
FILES = (RECIPE, METRICS, f"{CONFUSION}.json", f"{CONFUSION}.png")
WEIGHTS = "weights_step_*"
EVENTS = "events.out.tfevents.*"
CHECKPOINT_FILES = (
    STATE,  # first: what is left of a checkpoint without it is none
    "rng_*.pt",
    "model.safetensors",
    CONFIG_FILE,
    RECIPE,
    "dataset.json",
    "score.json",
    "SHA256SUMS",
    ".*.partial",
)
"""What a step folder holds; other files in it are the user's."""

_locked: set[tuple[int, int]] = set()
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: by its marker, or, as version 0.1.0 left it, a checkpoint."""
    if (folder / MARKER).is_file():
        return read_marker(folder / MARKER).get("library") == LIBRARY
    return any(
        read_marker(state.with_name(CONFIG_FILE)).get("library") == LIBRARY
        for state in (folder / CHECKPOINTS).glob(f"*/{STATE}")
    )


def check_run_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder whose files a run would take over or remove without the user's word.

    Raises:
        FileExistsError: it holds a run that shall neither go on nor be replaced; files that are no
            run's; or, where a run shall be replaced, links to what it wrote.
    """
    if is_run(folder):
        if overwrite:
            links = [
                n for n in (CHECKPOINTS, TENSORBOARD, PREDICTIONS) if (folder / n).is_symlink()
            ]
            if links:
                raise FileExistsError(
                    f"{folder / links[0]} is a link, and nothing is removed through links: remove "
                    "it and what it leads to, or choose another --output"
                )
        elif not resume:
            raise FileExistsError(
                f"{folder} already holds a run: continue it with --resume, replace it with "
                "--overwrite, or choose another --output"
            )
    elif not resume and (
        foreign := names_in_the_way(folder, FILES, (CHECKPOINTS, TENSORBOARD, PREDICTIONS))
    ):
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign)}, but no run that this program knows as its own, "
            "so that --overwrite does not touch it: choose another --output"
        )


def other_files(folder: Path) -> list[str]:
    """The visible files and folders that no run writes, sorted."""
    own = {*FILES, CHECKPOINTS, TENSORBOARD, PREDICTIONS}
    names = (name for name in names_in(folder) if not name.startswith(".") and name not in own)
    return sorted(name for name in names if not fnmatch(name, WEIGHTS))


def mark_run(folder: Path, pictures: Iterable[str] = ()) -> None:
    """Makes the folder known as a run that has drawn these pictures, besides earlier ones."""
    known = set(drawn_pictures(folder))
    wanted = known | set(map(encodable, pictures))
    if wanted - known or not (folder / MARKER).is_file():
        write_json(folder / MARKER, {"library": LIBRARY, "format": 1, "pictures": sorted(wanted)})


def drawn_pictures(folder: Path) -> list[str]:
    """File names in `predictions/` that the run wrote."""
    names = read_marker(folder / MARKER).get("pictures")
    if not isinstance(names, list):
        return []
    return [n for n in names if isinstance(n, str) and n not in ("", ".", "..") and "/" not in n]


def remove_run(folder: Path) -> None:
    """Removes what an earlier run wrote; other files and what links lead to stay."""
    pictures = drawn_pictures(folder)
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_symlink():
        for name in (LAST, BEST):
            remove_link(checkpoints / name)
        for step in (*checkpoints.glob("step_*"), *checkpoints.glob(".step_*.partial")):
            remove_checkpoint(step)
    for step in folder.glob(WEIGHTS):
        remove_checkpoint(step)
    _remove_files(folder / TENSORBOARD, [EVENTS])
    if not (folder / PREDICTIONS).is_symlink():
        for name in pictures:
            _unlink(folder / PREDICTIONS / name)
    for emptied in (checkpoints, folder / PREDICTIONS):
        with suppress(OSError):
            emptied.rmdir()
    for name in (*FILES, MARKER):
        _unlink(folder / name)


def remove_checkpoint(folder: Path) -> None:
    """Removes the files of a checkpoint, and its folder where nothing else is in it."""
    _remove_files(folder, CHECKPOINT_FILES)


def remove_link(link: Path) -> None:
    """Removes `last` or `best`; also where a copy of the run made it a folder."""
    if is_link(link):
        _unlink(link)
    elif (link / STATE).is_file():
        remove_checkpoint(link)


def size_of(folder: Path) -> int:
    """Bytes of the files directly in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def read_marker(file: Path) -> dict[str, object]:
    """The values of a JSON file; none where it cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def remove_leftovers(folder: Path) -> None:
    """Removes the files that a killed process was just writing."""
    remove_partial_files([folder, folder / PREDICTIONS, folder / CHECKPOINTS])


def _remove_files(folder: Path, patterns: Iterable[str]) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    for pattern in patterns:
        for file in folder.glob(pattern):
            _unlink(file)
    with suppress(OSError):
        folder.rmdir()


def _unlink(file: Path) -> None:
    if file.is_symlink() or file.is_file():
        with suppress(OSError):
            file.unlink()


@contextmanager
def lock_run(folder: Path) -> Iterator[str]:
    """Keeps other processes from training in the folder.

    The system ends the lock with the process, however that ends: none is ever stale.

    Yields:
        Why the folder could not be locked, where its file system knows no locks; else "".

    Raises:
        RunInUseError: another process has it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _open_lock(folder, os.O_RDWR | os.O_CREAT) as descriptor:
        problem = _lock(descriptor, fcntl.LOCK_EX, folder)
        identity = _identity(os.fstat(descriptor))
        _locked.add(identity)
        try:
            with suppress(OSError):  # the name in the message is a courtesy
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
            yield problem
        finally:
            _locked.discard(identity)


def check_not_in_use(folder: Path) -> None:
    """Refuses a folder that another process trains in.

    Raises:
        RunInUseError: one does.
    """
    if (folder / LOCK).is_file():
        with _open_lock(folder, os.O_RDONLY) as descriptor:
            _lock(descriptor, fcntl.LOCK_SH, folder)  # several processes may ask at once


@contextmanager
def _open_lock(folder: Path, flags: int) -> Iterator[int]:
    file = folder / LOCK
    if file.exists() and _identity(file.stat()) in _locked:
        # Opening the file once more would end this process's own lock when it is closed.
        raise RunInUseError(f"{folder} is in use: this process already trains there")
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
    return f"{folder} is in use: {who} trains there; wait for it or choose another --output"
