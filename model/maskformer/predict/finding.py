"""Which images `maskformer predict` is asked for."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from maskformer.data.pairing import IMAGE_SUFFIXES, left_out
from maskformer.errors import DatasetError
from maskformer.system.listing import list_files, list_folder
from maskformer.system.text import escape


def find_images(
    patterns: Sequence[str], out: Path | None = None, note: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Image files named by files, folders (all images below them) and glob patterns, in order.

    Folders, and patterns with `**`, follow the rules of `system.listing`, as training does: hidden
    names and results of earlier calls are left out, links are followed, every folder is read once.

    Args:
        patterns: as on the command line.
        out: where results go. What folders and patterns find in it comes from an earlier run and
            is left out.
        note: told what else is in a folder, and is not taken.

    Raises:
        DatasetError: a pattern that stands for nothing.
    """
    files: dict[tuple[str, str], Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else _outside(_expand(pattern), out)
        if not found:
            raise DatasetError(_nothing_found(pattern, out))
        if path.is_dir() and (passed_over := _left_out(path)):
            note(passed_over)
        for file in found:
            # The same file under another name of its folder is not predicted twice.
            files.setdefault((os.path.realpath(file.parent), file.name), file)
    return list(files.values())


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _left_out(folder: Path) -> str:
    listing = list_folder(folder)
    return left_out(folder, listing, [name for name in listing.files if not _is_image(name)])


def _expand(pattern: str) -> list[Path]:
    """What a folder or a pattern stands for, sorted."""
    path = Path(pattern)
    if path.is_dir():
        return [path / name for name in list_files(path) if _is_image(name)]
    if "**" not in path.parts:
        names = glob.glob(pattern)  # noqa: PTH207 (absolute patterns too)
        return sorted(file for file in map(Path, names) if not file.is_dir())
    # The `**` of `glob` never returns from two links that lead back.
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
    """Whether the parts of a path fit those of a pattern, where `**` is any number of folders."""
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
        return f"{message}; all {results} lie in --output {out}, where results go"
    if not Path(pattern).is_dir():
        return message
    listing = list_folder(Path(pattern))
    suffixes = Counter(escape(Path(name).suffix) or "no suffix" for name in listing.files)
    kinds = [f"{count} {suffix}" for suffix, count in suffixes.most_common(4)]
    return (
        f"{message}; the folder holds {', '.join(kinds + listing.left_out()) or 'no file'}, and "
        "images are "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}"
    )
