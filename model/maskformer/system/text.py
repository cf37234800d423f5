"""Text that came with data, made fit for terminals, logs and other programs' readers."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from typing import IO, Any

# Control characters, separators of lines, marks that turn the direction of writing, and halves of
# UTF-16 pairs, which also stand for the bytes of file names that are not UTF-8.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_NEWLINE = re.compile(UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_SURROGATE = re.compile("[\ud800-\udfff]")


def escape(text: object, *, newlines: bool = False) -> str:
    """The text with everything that a terminal would obey, or no encoding takes, as `\\x1b`.

    Args:
        text: any object; its `str` counts.
        newlines: line feeds are meant, and stay.
    """
    return (_UNSAFE_BUT_NEWLINE if newlines else UNSAFE).sub(_escaped, str(text))


def encodable(text: str) -> str:
    """The text with what UTF-8 cannot hold as `\\xb3`; for files, whose format does the rest."""
    return _SURROGATE.sub(_escaped, text)


def counted(number: float, noun: str) -> str:
    """`1 image`, `2 images`; the plural of the noun has an s."""
    return f"{number:.12g} {noun}{'s' * (number != 1)}"


def make_streams_safe() -> None:
    """Lets standard output and error escape what their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class StandardOutput:
    """Whatever standard output is at the time, as a file whose failures end no work.

    What its encoding lacks is escaped; what comes after its reader is gone is lost.
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
            with suppress(OSError):  # or Python would complain when it flushes once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), _stdout().fileno())
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(_stdout(), name)


def _stdout() -> IO[str]:
    # While bars are shown, rich puts an object in its place that writes to the console.
    stream: IO[str] = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return stream


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
