"""The orientation that a PNG states anywhere in the file, without its pixels."""

from __future__ import annotations

import os
import struct
from io import BytesIO
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import putchunk

from maskformer.data.image_files.orientation import tag_in

_KEPT = frozenset({b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
_ENDS = frozenset({b"IEND", b"fdAT"})
"""Behind the second frame of an animation, Pillow does not look either."""
_MAX_CHUNKS = 1 << 18
"""More than there are in a file of `FILE_LIMIT` bytes with the usual 8 KiB a chunk."""
_MAX_BYTES = 64 << 20
"""Pillow's limit for text."""


def png_tag(stream: BinaryIO) -> int:
    """The EXIF orientation, 1 to 8; Pillow decodes all pixels to find it behind them.

    Raises:
        Exception: of any type, where Pillow cannot read the metadata.
    """
    with Image.open(_without_pixels(stream), formats=("PNG",)) as image:
        return tag_in(Image.Image.getexif(image))  # the method of PNG images would decode them


def _without_pixels(stream: BinaryIO) -> BinaryIO:
    """The header and the metadata of a PNG; what is too much of it is left out."""
    stream.seek(0)
    kept = BytesIO()
    kept.write(stream.read(8))
    for _ in range(_MAX_CHUNKS):
        start = stream.read(8)
        if len(start) < 8:
            break
        length, kind = struct.unpack(">I4s", start)
        if kind in _ENDS:
            break
        if kind in _KEPT and kept.tell() + length <= _MAX_BYTES:
            putchunk(kept, kind, stream.read(length))
            length = 0
        stream.seek(length + 4, os.SEEK_CUR)  # and the checksum
    putchunk(kept, b"IEND")
    kept.seek(0)
    return kept
