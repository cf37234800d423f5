"""Untrusted text from data, made safe for terminals, logs and other programs."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from typing import IO, Any

# Control characters, line separators, marks that change the direction of writing, and surrogates,
# which also stand for the bytes of file names that are not UTF-8.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_NEWLINE = re.compile(UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_SURROGATE = re.compile("[\ud800-\udfff]")


def escape(text: object, *, newlines: bool = False) -> str:
    """Escape control characters, and those that cannot be encoded, as in `\\x1b`.

    Args:
        text: any object, which is converted with `str`.
        newlines: keep line feeds.
    """
    return (_UNSAFE_BUT_NEWLINE if newlines else UNSAFE).sub(_escaped, str(text))


def encodable(text: str) -> str:
    """Escape only characters that UTF-8 cannot encode, as in `\\xb3`, for text in files."""
    return _SURROGATE.sub(_escaped, text)


def counted(number: float, noun: str) -> str:
    """Format a number with a noun, as in `1 image` and `2 images`."""
    return f"{number:.12g} {noun}{'s' * (number != 1)}"


def make_streams_safe() -> None:
    """Make standard output and error escape characters that they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class StandardOutput:
    """The current standard output as a file that never fails.

    Characters that it cannot encode are escaped; text is dropped once its reader is gone.
    """

    def write(self, text: str) -> int:
        stream = _stdout()
        try:
            return stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            return stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            _stdout().flush()
        except BrokenPipeError:
            with suppress(OSError):  # otherwise, Python's flush at exit would print an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), _stdout().fileno())
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(_stdout(), name)


def _stdout() -> IO[str]:
    # While bars are shown, rich replaces it by an object that writes to the console.
    stream: IO[str] = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return stream


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
