"""BMP files with a grey palette, for which Pillow ignores the palette and the bit depth."""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL import ImageFile, ImagePalette

_SIZE_OF_HEADER, _OLDEST_HEADER = 14, 12
_RAW_MODES = {1: "P;1", 4: "P;4", 8: "P"}
"""Pillow's raw mode of palette indices, by their bits."""
_PALETTES = {"1": bytes((0, 0, 0, 255, 255, 255)), "L": bytes(v for v in range(256) for _ in "RGB")}
"""The palettes that Pillow ignores, by the mode that it reports instead."""


def restore_palette(image: ImageFile.ImageFile, stream: BinaryIO) -> None:
    """Make Pillow read the pixels with the bit depth that the file states. By itself, it reads them
    as 8 bits, or as 1 bit if the palette is black and white.

    Args:
        image: the image, opened but not yet loaded.
        stream: its file.
    """
    if image.format != "BMP" or image.mode not in _PALETTES:
        return
    if image.tile[0].codec_name != "raw":  # run-length encoded pixels have whole bytes
        return
    tile, bits = image.tile[0], _bits(stream)
    if bits == {"1": 1, "L": 8}[image.mode] or not isinstance(tile.args, tuple):
        return
    image.tile = [tile._replace(args=(_RAW_MODES[bits], *tile.args[1:]))]
    image.palette = ImagePalette.raw("RGB", _PALETTES[image.mode])
    image._mode = "P"


def _bits(stream: BinaryIO) -> int:
    stream.seek(_SIZE_OF_HEADER)
    (size,) = struct.unpack("<I", stream.read(4))
    stream.seek(_SIZE_OF_HEADER + (10 if size == _OLDEST_HEADER else 14))
    (bits,) = struct.unpack("<H", stream.read(2))
    return int(bits)
