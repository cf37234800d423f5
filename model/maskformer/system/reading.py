"""Reading files that are not trusted: regular ones only, and no more of them than is sensible."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT = 2 * 1024**3
"""Bytes; the largest annotations in use (COCO's) take a fifth of it."""
TEXT_LIMIT = 16 * 1024**2
"""Bytes of a text file."""
_LINE_END = re.compile("\r\n|\r|\n")
"""Only these: `str.splitlines` also cuts at form feeds and others, which names may hold."""


def open_regular(file: Path, limit: int | None = None) -> BinaryIO:
    """Opens a regular file, or a link to one; never waits, never touches a device.

    Args:
        file: what to open.
        limit: the largest size in bytes.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it is a pipe, socket, device or folder, is larger than `limit`, or may not be read.
    """
    _check(file.stat(), limit)  # to open a device may already do something
    # A file that became a pipe meanwhile must not block either.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), limit)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(file: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: as `open_regular` does.
    """
    with open_regular(file, limit) as stream:
        # The files of /proc say that they are empty.
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(_too_large(len(content), limit))
    return content


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that hold something, without the spaces around them. UTF-8, or
    UTF-16 with its mark, as Windows writes.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: as `open_regular` does.
        ValueError: it is neither; the message does not name the file.
    """
    content = read_regular(file, TEXT_LIMIT)
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is no UTF-8, perhaps it is in an older encoding such as Windows' cp1252; "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError("it holds NUL, as UTF-16 without its mark does; save the file as UTF-8")
    return [line.strip() for line in _LINE_END.split(text) if line.strip()]


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it is not regular, larger than `JSON_LIMIT`, or may not be read.
        ValueError: it is no JSON, or nested deeper than Python follows; the message is one line
            and does not name the file.
    """
    return decode_json(read_regular(file, JSON_LIMIT))


def decode_json(text: str | bytes, max_depth: int | None = None) -> Any:
    """The value of a JSON text.

    Args:
        max_depth: how deep values may be nested; by default, as deep as Python follows.

    Raises:
        ValueError: it is no JSON, nested too deep, or too large; the message is one line.
    """
    try:
        value = json.loads(text)
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


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep(max_depth: int | None) -> str:
    if max_depth is None:
        return "it is nested too deeply"
    return f"it nests values more than {max_depth} deep"


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
