"""Which version this is, and which one wrote a file."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_MARK = re.compile(r"# maskformer ([\w.+-]{1,40})\n")


@cache
def installed(package: str = "mfkernels") -> str:
    """The version of a package; `maskformer` is part of `mfkernels`."""
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        return "unknown"


def mark() -> str:
    """The first line of text files, by which `writer` knows the version."""
    return f"# maskformer {installed()}\n"


def writer(text: str) -> str:
    """What is known of the version that wrote a text, for messages."""
    found = _MARK.match(text)
    return f"maskformer {found[1]}" if found else "a version that it does not name"
