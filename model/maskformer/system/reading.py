"""Reading of untrusted files: only regular files, with limits of their size."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT = 2 * 1024**3
"""Limit of a JSON file in bytes. The largest annotations in use (COCO's) take a fifth of it."""
TEXT_LIMIT = 16 * 1024**2
"""Limit of a text file in bytes."""
_LINE_END = re.compile("\r\n|\r|\n")
"""Unlike `str.splitlines`, it does not split at form feeds and others, which names may contain."""


def open_regular(file: Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file, or a link to one. This never blocks and never opens a device.

    Args:
        file: the file.
        limit: the largest size in bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: it is a pipe, socket, device or folder, is larger than `limit`, or cannot be read.
    """
    _check(file.stat(), limit)  # check before opening, because opening a device may have effects
    # Open without blocking, in case the file has been replaced by a pipe in the meantime.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), limit)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(file: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: as in `open_regular`.
    """
    with open_regular(file, limit) as stream:
        # Files in /proc have size 0, so check the size of the content, too.
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(_too_large(len(content), limit))
    return content


def read_lines(file: Path) -> list[str]:
    """Read the non-empty lines of a text file, without surrounding spaces. The encoding is UTF-8,
    or UTF-16 with a byte order mark, as Windows writes it.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: as in `open_regular`.
        ValueError: the file has another encoding; the message does not name the file.
    """
    content = read_regular(file, TEXT_LIMIT)
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8, perhaps it is in an older encoding such as Windows' "
            "cp1252; save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            "it contains NUL, like UTF-16 without a byte order mark; save the file as UTF-8"
        )
    return [line.strip() for line in _LINE_END.split(text) if line.strip()]


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: it is not a regular file, is larger than `JSON_LIMIT`, or cannot be read.
        ValueError: it is not JSON, or nested too deeply for Python; the message is one line and
            does not name the file.
    """
    return decode_json(read_regular(file, JSON_LIMIT))


def decode_json(text: str | bytes, max_depth: int | None = None) -> Any:
    """Parse JSON.

    Args:
        text: the JSON text.
        max_depth: the largest depth of nested values; by default, Python's own limit.

    Raises:
        ValueError: the text is not JSON, has a key twice in one object, or is nested too deeply or
            too large; the message is one line.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(_too_deep(max_depth)) from None
    except MemoryError:
        raise ValueError("it does not fit into memory") from None
    if max_depth is not None:
        level = [value]
        for _ in range(max_depth):
            level = [item for parent in level for item in _children(parent)]
        if level:
            raise ValueError(_too_deep(max_depth))
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate keys, of which `json` would keep only the last value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r:.100} occurs twice in one object")
    return values


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep(max_depth: int | None) -> str:
    if max_depth is None:
        return "it is nested too deeply"
    return f"it nests values more than {max_depth} levels deep"


def _check(status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"it is a {_kind(status.st_mode)}, expected a regular file")
    if limit is not None and status.st_size > limit:
        raise OSError(_too_large(status.st_size, limit))


def _too_large(size: int, limit: int) -> str:
    return f"it has {size:,} bytes, expected at most {limit:,}"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
