"""The installed version, and the version that wrote a file."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_MARK = re.compile(r"# maskformer ([\w.+-]{1,40})\n")


@cache
def installed(package: str = "mfkernels") -> str:
    """Return the installed version of a package; `maskformer` is part of `mfkernels`."""
    try:
        return version(package)
    except PackageNotFoundError:  # run from the source tree without installation
        return "unknown"


def mark() -> str:
    """Return the first line of text files, from which `writer` reads the version."""
    return f"# maskformer {installed()}\n"


def writer(text: str) -> str:
    """Return the version that wrote a text, for messages."""
    found = _MARK.match(text)
    return f"maskformer {found[1]}" if found else "an unknown version"
