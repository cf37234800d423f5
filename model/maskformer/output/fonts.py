"""Fonts that have all characters of a text: Pillow's font, or one of the system's fonts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FOLDERS = (
    Path.home() / ".local/share/fonts",
    Path.home() / ".fonts",
    Path("/usr/local/share/fonts"),
    Path("/usr/share/fonts"),
    Path(sys.prefix) / "fonts",
)
_SUFFIXES = frozenset({".otf", ".ttc", ".ttf"})
_LESS_LEGIBLE = ("bold", "condensed", "italic", "light", "math", "mono", "oblique", "serif", "thin")
_NO_CHARACTER = "\uffff"
"""A noncharacter, which every font draws like the characters that it lacks."""


@cache
def own_font(size: int) -> Font:
    """Return Pillow's font, which has the characters of English."""
    return ImageFont.load_default(size)


@cache
def font_for(text: str, size: int) -> Font | None:
    """Return a font that can draw every character of a text, or None."""
    for font in (own_font(size), *_system_fonts(size)):
        if _has_all(font, text):
            return font
    return None


def drawable(text: str, other: str, size: int) -> tuple[str, Font]:
    """Return a text and a font that has its characters. If there is none, return the other text and
    Pillow's font.
    """
    font = font_for(text, size)
    return (other, own_font(size)) if font is None else (text, font)


def _has_all(font: Font, text: str) -> bool:
    absent = _shape(font, _NO_CHARACTER)
    return all(_shape(font, character) != absent for character in set(text))


def _shape(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _system_fonts(size: int) -> Iterator[Font]:
    fonts = (_opened(file, size) for file in _font_files())
    return (font for font in fonts if font is not None)


@cache
def _opened(file: Path, size: int) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except OSError:  # such as a bitmap font of a fixed size
        return None


@cache
def _font_files() -> tuple[Path, ...]:
    """Return the files of the system's fonts, regular styles first."""
    files = (
        file
        for folder in FOLDERS
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES and file.is_file()
    )
    return tuple(sorted(files, key=_rank))


def _rank(file: Path) -> tuple[int, str]:
    name = file.name.lower().replace("sansserif", "sans")
    return sum(word in name for word in _LESS_LEGIBLE), name
