"""Recognising the split by the names of folders and files."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import PurePosixPath

SPLITS = ("train", "val", "test")


def split_of(folder: str) -> str | None:
    """Return train, val or test if a folder's name, or that of a parent, starts with it."""
    words = map(_word_of, reversed(folder.split("/")))
    return next((word for word in words if word), None)


def split_in(path: str) -> str | None:
    """As `split_of`, but for any word in a name, as in `instances_val2017.json`."""
    names = (re.findall("[A-Za-z]+", name) for name in reversed(path.split("/")))
    return next((split for words in names for word in words if (split := _word_of(word))), None)


def without_split(folder: str) -> str:
    """Return the parent folder of all splits."""
    return PurePosixPath(*takewhile(lambda part: not _word_of(part), folder.split("/"))).as_posix()


def _word_of(part: str) -> str | None:
    return next((word for word in SPLITS if part.lower().startswith(word)), None)
