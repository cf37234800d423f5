"""The folder of a training run: how it is recognised, and which files may be removed from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from maskformer.output.output_folder import CONFUSION, METRICS, PREDICTIONS, existing_names
from maskformer.system.listing import RUN, names_in
from maskformer.system.text import encodable
from maskformer.system.writing import remove_partial_files, write_json
from maskformer.weights.files import CONFIG_FILE, WEIGHTS_FILE
from maskformer.weights.locate import BEST, CHECKPOINTS, LAST, RECIPE, STATE, is_link, step_folders
from maskformer.weights.native import LIBRARY

MARKER = RUN
"""JSON file that marks a folder as a run and lists the pictures that the run has written."""
TENSORBOARD = "tensorboard"
FILES = (RECIPE, METRICS, f"{CONFUSION}.json", f"{CONFUSION}.png")
WEIGHTS = "weights_step_*"
EVENTS = "events.out.tfevents.*"
CHECKPOINT_FILES = (
    STATE,  # removed first: without it, a half-removed folder no longer counts as a checkpoint
    "rng_*.pt",
    WEIGHTS_FILE,
    CONFIG_FILE,
    RECIPE,
    "dataset.json",
    "score.json",
    "SHA256SUMS",
    ".*.partial",
)
"""The files of a step folder. Any other files in it are the user's."""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: it has our marker or, if written by version 0.1.0, which wrote
    no marker, a checkpoint.
    """
    if (folder / MARKER).is_file():
        return read_marker(folder / MARKER).get("library") == LIBRARY
    return any(
        read_marker(state.with_name(CONFIG_FILE)).get("library") == LIBRARY
        for state in (folder / CHECKPOINTS).glob(f"*/{STATE}")
    )


def check_run_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a run may use a folder without replacing files that the user wants to keep.

    Raises:
        FileExistsError: the folder holds a run while `resume` and `overwrite` are False, or files
            of another origin with the names of a run's; or a run to be replaced is behind links.
    """
    if is_run(folder):
        if overwrite:
            links = [
                n for n in (CHECKPOINTS, TENSORBOARD, PREDICTIONS) if (folder / n).is_symlink()
            ]
            if links:
                raise FileExistsError(
                    f"{folder / links[0]} is a link, and --overwrite does not follow links: remove "
                    "it and its target, or choose another --output"
                )
        elif not resume:
            raise FileExistsError(
                f"{folder} already holds a run: continue it with --resume, replace it with "
                "--overwrite, or choose another --output"
            )
    elif not resume and (
        foreign := existing_names(folder, FILES, (CHECKPOINTS, TENSORBOARD, PREDICTIONS))
    ):
        raise FileExistsError(
            f"{folder} holds {', '.join(foreign)}, but is not a run written by maskformer, so "
            "--overwrite does not replace it: choose another --output"
        )


def other_files(folder: Path) -> list[str]:
    """Return the visible files and folders that do not belong to a run, sorted."""
    own = {*FILES, CHECKPOINTS, TENSORBOARD, PREDICTIONS}
    names = (name for name in names_in(folder) if not name.startswith(".") and name not in own)
    return sorted(name for name in names if not fnmatch(name, WEIGHTS))


def mark_run(folder: Path, pictures: Iterable[str] = ()) -> None:
    """Write the marker that makes a folder a run, and add pictures to the list in it."""
    known = set(drawn_pictures(folder))
    wanted = known | set(map(encodable, pictures))
    if wanted - known or not (folder / MARKER).is_file():
        write_json(folder / MARKER, {"library": LIBRARY, "format": 1, "pictures": sorted(wanted)})


def drawn_pictures(folder: Path) -> list[str]:
    """Return the names of the files in `predictions/` that the run wrote."""
    names = read_marker(folder / MARKER).get("pictures")
    if not isinstance(names, list):
        return []
    return [n for n in names if isinstance(n, str) and n not in ("", ".", "..") and "/" not in n]


def remove_run(folder: Path) -> None:
    """Remove the files that an earlier run wrote, but no other files and no targets of links."""
    pictures = drawn_pictures(folder)
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_symlink():
        for name in (LAST, BEST):
            remove_link(checkpoints / name)
        for step in (*step_folders(checkpoints), *checkpoints.glob(".step_*.partial")):
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
    """Remove the files of a checkpoint, and its folder if that is empty afterwards."""
    _remove_files(folder, CHECKPOINT_FILES)


def remove_link(link: Path) -> None:
    """Remove `last` or `best`, even if copying the run has turned the link into a folder."""
    if is_link(link):
        _unlink(link)
    elif (link / STATE).is_file():
        remove_checkpoint(link)


def size_of(folder: Path) -> int:
    """Return the total size in bytes of the files directly in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def read_marker(file: Path) -> dict[str, object]:
    """Return the values of a JSON file, or an empty dict if it cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files that a killed process left behind."""
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
