"""Untrusted names from data: files are only read and written inside the expected folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from maskformer.errors import DatasetError, UsageError
from maskformer.system.listing import names_in
from maskformer.system.text import UNSAFE, escape

NAME_BYTES = 255
"""Limit of a name in bytes that nearly all file systems have."""
LONGEST = 1024
"""Our limit of a name with its folders in bytes; the system's limit of a path is 4096."""

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_DRIVE_ALONE = re.compile(r"(?<=^[A-Za-z]):$")


def given_path(name: str, path: str | Path) -> Path:
    """Convert a path that the caller passed as the argument `name`.

    Raises:
        TypeError: something else, such as None.
        UsageError: an empty text, which Python takes for the current folder.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {path!r:.100}")
    if path == "":
        raise UsageError(f"{name} must be a path, got an empty text; '.' is the current folder")
    return Path(path)


def name_inside(folder: Path, name: object, what: str) -> str:
    """Check that a name from data refers to a file inside a folder, and return it relative to that
    folder, with `/` as separator. Links are checked by `missing_files`.

    Args:
        folder: the folder of the file.
        name: the name in the data. It may be absolute or contain `..` if it is inside the folder.
        what: where the name came from, for the message.

    Raises:
        DatasetError: the name is not a string, is empty, refers to a folder or to a file outside,
            or is a Windows path.
    """
    if not isinstance(name, str):
        raise DatasetError(f"{what} must be the name of a file, got {name!r:.100}")
    fault = _fault(name)
    if not fault:
        if not any(part in ("", ".", "..") for part in name.split("/")):
            return name
        for base in (str(folder.absolute()), os.path.realpath(folder)):
            inside = os.path.relpath(
                os.path.normpath(name if name.startswith("/") else f"{base}/{name}"), base
            )
            if inside != "." and inside.partition("/")[0] != "..":
                return inside
        fault = f"is outside of {escape(folder)}"
    raise DatasetError(
        f"{what} '{escape(name)[:300]}' {fault}; expected a file in its folder, relative to it"
    )


def _fault(name: str) -> str:
    if not name:
        return "is empty"
    if "\0" in name:
        return "contains NUL"
    if _DRIVE.match(name) or "\\" in name:
        return "is a Windows path, with a drive or backslashes"
    if name.endswith("/") or name.rpartition("/")[2] in (".", ".."):
        return "names a folder"
    return ""


def missing_files(folder: Path, names: Sequence[str], root: Path, what: str) -> list[str]:
    """Return which of the files do not exist.

    Each folder is listed once, because checking each of 100,000 files is slow on network drives.

    Args:
        folder: the folder of the files.
        names: their names relative to it, from `name_inside`.
        root: links must point inside this or the folder.
        what: where the names came from, for the message.

    Raises:
        DatasetError: a link points outside.
    """
    allowed = [folder.resolve(), root.resolve()]
    listings: dict[str, dict[str, bool]] = {}
    missing = []
    for name in names:
        above, _, last = name.rpartition("/")
        if above not in listings:
            listings[above] = names_in(folder / above)
            if listings[above]:
                _check_inside(folder / above, allowed, name, what)
        is_link = listings[above].get(last)
        if is_link is None:
            missing.append(name)
        elif is_link:
            _check_inside(folder / name, allowed, name, what)
    return missing


def _check_inside(path: Path, allowed: Sequence[Path], name: str, what: str) -> None:
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # a cycle of links
        raise DatasetError(f"{what} '{escape(name)}' cannot be resolved: {error}") from None
    if not any(real.is_relative_to(root) for root in allowed):
        raise DatasetError(
            f"{what} '{escape(name)}' is a link to {escape(real)}, outside of "
            f"{escape(allowed[0])}; set the folder to that of the files, or copy them"
        )


class OutputNames:
    """Gives each result a unique file name, derived from the name in its data.

    A name is kept unchanged if it is relative, printable UTF-8, not too long for file systems, and
    different from all others, also if case and Unicode normalisation are ignored. If it is changed,
    the result files that list the image contain both names.

    Args:
        suffix: the suffix of the files.
    """

    def __init__(self, suffix: str = ".png") -> None:
        self.suffix = suffix
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}

    def take(self, name: str) -> str:
        """Reserve a unique name without suffix, which includes folders only if `name` does."""
        name = self._safe(name)
        if not self._files.isdisjoint(_above(_key(name))):  # a file has the name of a folder in it
            name = self._shorten(name.replace("/", "_"), "")
        free, number = name, self._numbers.get(name, 1)
        while not self._is_free(free):
            number += 1
            free = self._shorten(name, f"_{number}")
        self._numbers[name] = number  # so that many images with one name do not try all numbers
        key = _key(free + self.suffix)
        self._files.add(key)
        self._folders.update(_above(key))
        return free

    def _is_free(self, name: str) -> bool:
        key = _key(name + self.suffix)
        return key not in self._files and key not in self._folders

    def _safe(self, name: str) -> str:
        parts = [part for part in name.replace("\\", "_").split("/") if part not in ("", ".")]
        parts = [UNSAFE.sub(_percent, part) for part in parts] or ["image"]
        parts = ["__" if part == ".." else part for part in parts]
        parts[0] = _DRIVE_ALONE.sub("_", parts[0])
        if len("/".join(parts).encode()) > LONGEST:
            parts = ["_".join(parts)]
        *above, last = parts
        above = [_cut(part, NAME_BYTES) for part in above]
        return "/".join([*above, _cut(last, NAME_BYTES - len(self.suffix))])

    def _shorten(self, name: str, end: str) -> str:
        above, slash, last = name.rpartition("/")
        return above + slash + _cut(last, NAME_BYTES - len(self.suffix) - len(end)) + end


def _percent(match: re.Match[str]) -> str:
    """Return a character as `%1B`, which is printable and valid on all file systems."""
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:
        return f"%{number - 0xDC00:02X}"
    return "".join(f"%{byte:02X}" for byte in match[0].encode(errors="surrogatepass"))


def _cut(part: str, limit: int) -> str:
    """Return a name of at most `limit` bytes; if it is shortened, it ends with a hash of all."""
    encoded = part.encode()
    if len(encoded) <= limit:
        return part
    end = f"-{blake2b(encoded, digest_size=4).hexdigest()}"
    return encoded[: limit - len(end)].decode(errors="ignore") + end


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _above(name: str) -> list[str]:
    """Return all parent folders of a file."""
    return [parent.as_posix() for parent in PurePosixPath(name).parents][:-1]


def image_ids(names: Sequence[str]) -> list[int | str]:
    """Return an id for each image: its name, converted to a number if it is one (as in COCO) that
    is unique.
    """
    numbers = [int(name) if name.isdecimal() and len(name) < 19 else None for name in names]
    seen: dict[int, int] = {}
    for number in numbers:
        if number is not None:
            seen[number] = seen.get(number, 0) + 1
    return [
        number if number is not None and seen[number] == 1 else name
        for name, number in zip(names, numbers, strict=True)
    ]


def folders_and_links_of(files: Iterable[Path]) -> list[Path]:
    """Return the folders of files, and those files that are links: all places to protect."""
    folders: dict[str, dict[str, bool]] = {}
    links = []
    for file in files:
        above, name = os.path.split(file)
        if above not in folders:
            folders[above] = names_in(Path(above))
        if folders[above].get(name):
            links.append(file)
    return [*map(Path, folders), *links]


def path_exists(path: Path) -> bool:
    """Whether a path exists. This is False if a parent folder cannot be accessed."""
    return _identity(path) is not None


def find_input_in(folder: Path, inputs: Iterable[Path]) -> Path | None:
    """Return the first of the inputs that a folder is or contains, or None.

    Files are compared by identity, not by name, because of links, mounts and case-insensitive file
    systems.

    Args:
        folder: the folder, which need not exist.
        inputs: files and folders; links are compared as such and by their targets.
    """
    wanted = _identity(folder)
    if wanted is None:
        return None
    known: dict[str, bool] = {}
    for path in inputs:
        for real in (str(path.absolute()), os.path.realpath(path)):
            if _lies_in(real, wanted, known):
                return path
    return None


def _lies_in(path: str, wanted: tuple[int, int] | None, known: dict[str, bool]) -> bool:
    if path not in known:
        above = os.path.split(path)[0]
        known[path] = _identity(path) == wanted or (
            above != path and _lies_in(above, wanted, known)
        )
    return known[path]


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
