"""Opening files that may be no images, with messages that name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
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
"""What images and labels may be, whatever their suffix says. Among the others that Pillow opens are
some that start programs, as EPS does. TGA is the last because it has no mark to know it by."""
FILE_LIMIT = 1024**3
"""Bytes of an image file; some decoders read it whole."""


class StoredFile(Protocol):
    """An image file that lies in another one, such as a row of a table. Its text is a name for
    messages.
    """

    def open(self) -> BinaryIO:
        """Its content; may raise an error of any type."""


ImageSource = Path | StoredFile


@contextmanager
def opened(
    file: ImageSource, what: str, max_pixels: int = MAX_PIXELS
) -> Iterator[ImageFile.ImageFile]:
    """An image, not yet loaded.

    Args:
        what: what it should be, such as `label`, for messages.
        max_pixels: of the image.

    Raises:
        DatasetError: whatever goes wrong with the file or its pixels.
    """
    with opened_stream(file, what) as stream, open_image(stream, max_pixels) as image:
        yield image


@contextmanager
def opened_stream(file: ImageSource, what: str) -> Iterator[BinaryIO]:
    """A regular file; as `opened`, whatever goes wrong with it becomes a `DatasetError`."""
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
    except Exception as error:  # broken files make decoders raise any type
        raise DatasetError(
            f"{what} file {name} cannot be read ({reason(error)}); it is broken or not an image: "
            "replace or remove it"
        ) from None


class PixelLimitError(Exception):
    """An image with more pixels than `data.max_pixels`."""

    def __init__(self, pixels: object, max_pixels: int) -> None:
        super().__init__(
            f"{pixels} pixels, more than data.max_pixels: {max_pixels} allows; make it smaller, "
            "cut it, or raise data.max_pixels if the file can be trusted"
        )


def open_image(stream: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Pillow's image, not yet loaded.

    Raises:
        PixelLimitError: it has more pixels.
        Exception: of any type.
    """
    _let_pillow_read(max_pixels)
    try:
        image = Image.open(stream, formats=formats())
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise PixelLimitError(found[0] if found else "too many", max_pixels) from None
    check_pixels(image.width, image.height, max_pixels)
    restore_palette(image, stream)
    return image


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuses images of no pixel, and of too many.

    Raises:
        ValueError, PixelLimitError: it is one.
    """
    if not width or not height:
        raise ValueError(f"it has {width}x{height} pixels")
    if width * height > max_pixels:
        raise PixelLimitError(f"{width}x{height} = {width * height}", max_pixels)


def _let_pillow_read(max_pixels: int) -> None:
    """Raises the limit that Pillow has for the whole process: beyond, it warns of an attack."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reason(error: Exception) -> str:
    """What an error of any type says, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(formats())}"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return escape(error) or type(error).__name__
