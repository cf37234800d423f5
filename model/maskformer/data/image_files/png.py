"""Reading the EXIF orientation of a PNG without decoding its pixels."""

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
"""Chunks that end the search. Pillow also ignores what follows an animation's second frame."""
_MAX_CHUNKS = 1 << 18
"""Limit of the number of chunks. With the usual 8 KiB per chunk, a file of `FILE_LIMIT` bytes has
fewer.
"""
_MAX_BYTES = 64 << 20
"""Limit of the metadata in bytes, the same as Pillow's limit for text."""


def png_tag(stream: BinaryIO) -> int:
    """Return the EXIF orientation, 1 to 8. If it comes after the pixels, Pillow would decode all of
    them to find it.

    Raises:
        Exception: any type, if Pillow cannot read the metadata.
    """
    with Image.open(_without_pixels(stream), formats=("PNG",)) as image:
        return tag_in(Image.Image.getexif(image))  # `getexif` of PNG images would decode the pixels


def _without_pixels(stream: BinaryIO) -> BinaryIO:
    """Copy the header and the metadata of a PNG, up to `_MAX_BYTES`."""
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
        stream.seek(length + 4, os.SEEK_CUR)  # 4 for the checksum
    putchunk(kept, b"IEND")
    kept.seek(0)
    return kept
