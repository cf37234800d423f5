"""Finding the images that `maskformer predict` is to segment."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from maskformer.data.pairing import IMAGE_SUFFIXES, describe_skipped
from maskformer.errors import DatasetError
from maskformer.system.listing import list_files, list_folder
from maskformer.system.text import escape


def find_images(
    patterns: Sequence[str], out: Path | None = None, note: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Find image files by paths of files and folders (all images below them) and glob patterns, in
    order.

    Folders, and patterns with `**`, are listed by the rules of `system.listing`, as in training:
    hidden names and results of earlier calls are skipped, links are followed, and each folder is
    read once.

    Args:
        patterns: paths and patterns as on the command line.
        out: the output folder. Files that folders and patterns find in it are results of an earlier
            run and are skipped.
        note: called with a line on the skipped files of a folder.

    Raises:
        DatasetError: a path or pattern matches nothing.
    """
    files: dict[tuple[str, str], Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else _outside(_expand(pattern), out)
        if not found:
            raise DatasetError(_nothing_found(pattern, out))
        if path.is_dir() and (skipped := _describe_skipped(path)):
            note(skipped)
        for file in found:
            # Do not predict a file twice that is reached through different names of its folder.
            files.setdefault((os.path.realpath(file.parent), file.name), file)
    return list(files.values())


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _describe_skipped(folder: Path) -> str:
    listing = list_folder(folder)
    return describe_skipped(
        folder, listing, [name for name in listing.files if not _is_image(name)]
    )


def _expand(pattern: str) -> list[Path]:
    """Return the files in a folder, or those that match a pattern, sorted."""
    path = Path(pattern)
    if path.is_dir():
        return [path / name for name in list_files(path) if _is_image(name)]
    if "**" not in path.parts:
        names = glob.glob(pattern)  # noqa: PTH207 (absolute patterns too)
        return sorted(file for file in map(Path, names) if not file.is_dir())
    # The `**` of `glob` does not terminate if two links point to a parent folder.
    first = path.parts.index("**")
    tops = glob.glob(str(Path(*path.parts[:first])))  # noqa: PTH207
    return [
        Path(top, name)
        for top in sorted(tops)
        if Path(top).is_dir()
        for name in list_files(Path(top))
        if _matches(name.split("/"), path.parts[first:])
    ]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, where `**` is any number of folders."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        rest = patterns[1:] or ["*"]
        return any(_matches(names[start:], rest) for start in range(len(names)))
    return (
        bool(names)
        and fnmatch.fnmatchcase(names[0], patterns[0])
        and _matches(names[1:], patterns[1:])
    )


def _outside(files: Iterable[Path], out: Path | None) -> list[Path]:
    if out is None:
        return list(files)
    results = os.path.realpath(out)
    return [file for file in files if Path(results) not in Path(os.path.realpath(file)).parents]


def _nothing_found(pattern: str, out: Path | None) -> str:
    message = f"no image at '{pattern}': expected a file, a folder or a pattern"
    results = len(_expand(pattern))
    if results:
        return f"{message}; all {results} are in the output folder (--output {out})"
    if not Path(pattern).is_dir():
        return message
    listing = list_folder(Path(pattern))
    suffixes = Counter(escape(Path(name).suffix) or "no suffix" for name in listing.files)
    kinds = [f"{count} {suffix}" for suffix, count in suffixes.most_common(4)]
    return (
        f"{message}; the folder holds {', '.join(kinds + listing.skipped()) or 'no file'}, and "
        "images are "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}"
    )
