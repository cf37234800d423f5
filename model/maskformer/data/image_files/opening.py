"""Opening of image files, with error messages that name the file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image, ImageFile, UnidentifiedImageError

from maskformer.config.schema import MAX_PIXELS
from maskformer.data.image_files.bmp import restore_palette
from maskformer.errors import DatasetError
from maskformer.system.reading import open_regular
from maskformer.system.text import escape

FORMATS = (
    "JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "QOI", "TGA"
)  # fmt: skip
"""The accepted formats of images and labels, whatever their suffix. Pillow supports others, but
some of them run programs, such as EPS. TGA comes last because it has no signature."""
FILE_LIMIT = 1024**3
"""Limit of an image file in bytes, because some decoders read the whole file into memory."""


class StoredFile(Protocol):
    """An image file inside another file, such as in a row of a table. `str()` of it gives a name
    for messages.
    """

    def open(self) -> BinaryIO:
        """Open its content; may raise an error of any type."""


ImageSource = Path | StoredFile


@dataclass(frozen=True)
class EncodedImage:
    """The content of an image file, such as the body of a request, as `StoredFile`."""

    content: bytes

    def __str__(self) -> str:
        return "given as bytes"

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content)


@contextmanager
def opened(
    file: ImageSource, what: str, max_pixels: int = MAX_PIXELS
) -> Iterator[ImageFile.ImageFile]:
    """Open an image without loading its pixels.

    Args:
        file: the file.
        what: the kind of file, such as `label`, for messages.
        max_pixels: the limit of height times width.

    Raises:
        DatasetError: in place of any error, also of those that the block raises.
    """
    with opened_stream(file, what) as stream, open_image(stream, max_pixels) as image:
        yield image


@contextmanager
def opened_stream(file: ImageSource, what: str) -> Iterator[BinaryIO]:
    """Open a regular file. As in `opened`, any error becomes a `DatasetError`."""
    name = escape(file)
    try:
        with open_regular(file, FILE_LIMIT) if isinstance(file, Path) else file.open() as stream:
            yield stream
    except PixelLimitError as error:
        raise DatasetError(f"{what} file {name} has {error}") from None
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{what} file {name} does not exist") from None
    except Exception as error:  # broken files make decoders raise errors of any type
        raise DatasetError(
            f"{what} file {name} cannot be read ({reason(error)}); it is broken or not an image: "
            "replace or remove it"
        ) from None


class PixelLimitError(Exception):
    """An image with more pixels than `data.max_pixels`."""

    def __init__(self, pixels: object, max_pixels: int) -> None:
        super().__init__(
            f"{pixels} pixels, more than data.max_pixels: {max_pixels} allows; resize or crop it, "
            "or raise data.max_pixels if the file can be trusted"
        )


def open_image(stream: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image with Pillow without loading its pixels.

    Raises:
        PixelLimitError: it has more than `max_pixels`.
        Exception: any type, if the file is damaged.
    """
    _raise_pillow_limit(max_pixels)
    try:
        image = Image.open(stream, formats=formats())
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise PixelLimitError(found[0] if found else "too many", max_pixels) from None
    check_pixels(image.height, image.width, max_pixels)
    restore_palette(image, stream)
    return image


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Check the size of an image.

    Raises:
        ValueError: it has no pixels.
        PixelLimitError: it has more than `max_pixels`.
    """
    if not width or not height:
        raise ValueError(f"it has {width}x{height} pixels")
    if width * height > max_pixels:
        raise PixelLimitError(f"{width}x{height} = {width * height}", max_pixels)


def _raise_pillow_limit(max_pixels: int) -> None:
    """Raise Pillow's limit of pixels, which applies to the whole process. Above it, Pillow would
    warn of a decompression bomb.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


@cache
def formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reason(error: Exception) -> str:
    """Return the message of an error of any type in one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(formats())}"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return escape(error) or type(error).__name__
