"""The exact values of a label file, and the formats and modes that cannot hold labels."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from maskformer.data.image_files.arrays import (
    bits_of,
    has_deep_colors,
    sample_format,
    samples_of,
)
from maskformer.data.image_files.opening import ImageSource
from maskformer.errors import DatasetError
from maskformer.system.text import escape

Labels = NDArray[np.integer]
LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF", "JPEG2000": "JPEG 2000"}
"""Lossy formats by Pillow's name. (AVIF and JPEG 2000 can also be lossless, but their headers do
not say so.)"""
LOSSY_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}
SHOWN_COLORS = 4
_INVERTED = re.compile(r";\d?IR?$")
"""Matches Pillow's raw modes, packed or not, in which 0 is white."""
_TIFF_DTYPES: dict[tuple[int, int], type[np.integer]] = {(8, 2): np.int8, (32, 1): np.uint32}
"""The true dtype by (bits, format) of samples that Pillow returns as uint8 or int32."""


class SampleForm(NamedTuple):
    """How a file stores its samples, if Pillow returns them differently.

    Attributes:
        largest: the largest value, which Pillow scales to 255 or 65535: 3 for 2-bit grey, 15 for
            4-bit grey, the "maxval" of PGM.
        inverted: whether 0 is white, which Pillow returns as the largest value.
        dtype: the dtype of the samples, if Pillow interprets their bytes as another one.
        renumbered: whether writers of this format renumber the colours of a palette in each file,
            as Pillow does for GIF.
    """

    largest: int
    inverted: bool
    dtype: type[np.integer] | None = None
    renumbered: bool = False


def check_lossless(image: ImageFile.ImageFile, file: ImageSource, what: str = "label") -> None:
    """Check that a label file has no lossy compression, which would change classes.

    Args:
        image: the image, opened but not yet loaded.
        file: the file, for the message.
        what: the kind of file, for the message.

    Raises:
        DatasetError: the format is lossy.
    """
    name = LOSSY.get(image.format or "")
    if image.format == "TIFF":
        name = LOSSY_TIFF.get(str(image.info.get("compression")))
    elif image.format == "WEBP" and not _is_lossless_webp(image):
        name = "WebP"
    if name is not None:
        raise DatasetError(
            f"{what} file {escape(file)} is compressed as {name}, which changes values, mostly at "
            "the edges of segments; export the labels again as PNG (converting this file to PNG "
            "would keep its wrong values)"
        )


def check_depth(image: ImageFile.ImageFile, file: ImageSource, what: str = "label") -> None:
    """Check that the channels of a colour image have 8 bits: of deeper ones, Pillow would keep the
    upper 8 bits, and small values would become 0.

    Args:
        image: the image, opened but not yet loaded.
        file: the file, for the message.
        what: the kind of file, for the message.

    Raises:
        DatasetError: there are several channels of more than 8 bits each.
    """
    deep = bits_of(image) > 8 or sample_form(image).largest > 255 or has_deep_colors(image)
    if deep and max(samples_of(image), len(image.getbands())) > 1:
        raise DatasetError(
            f"{what} file {escape(file)} has 16 bits per channel, of which the lower 8 would be "
            "lost, expected 8; save its values with 8 bits per channel"
        )


def sample_form(image: ImageFile.ImageFile) -> SampleForm:
    """Return how a file stores its samples.

    Args:
        image: the image, opened but not yet loaded; loading discards this information.
    """
    codec, _, _, arguments = image.tile[0] if image.tile else ("", None, 0, "")
    mode, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    largest = {"L;2": 3, "L;4": 15}.get(str(mode)[:3], 255)
    if codec.startswith("ppm") and others:
        largest = int(others[0])
    dtype = _TIFF_DTYPES.get((bits_of(image), sample_format(image)))
    inverted = _INVERTED.search(str(mode)) is not None
    return SampleForm(largest, inverted, dtype, renumbered=image.format == "GIF")


def _stored_values(pixels: Labels, form: SampleForm) -> Labels:
    """Undo the conversion by Pillow, which is lossless."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    if form.dtype is not None:
        return pixels.view(form.dtype)
    largest = form.largest
    if largest not in (255, 65535):
        stretched = 255 if largest < 255 else 65535
        pixels = (pixels.astype(np.int64) * largest + stretched // 2) // stretched
    return largest - pixels if form.inverted else pixels


def grey_values(image: Image.Image, form: SampleForm, file: ImageSource) -> Labels:
    """Return the values `[H, W]` as the file stores them, even if it declares 0 to be white.

    Args:
        image: the loaded image.
        form: the result of `sample_form`.
        file: the file, for messages.

    Raises:
        DatasetError: the pixels are colours or floats or have an alpha channel; are indices into a
            palette that the format renumbers; or are single bits with 0 as white, for which it is
            ambiguous whether a mask or its inverse is meant.
    """
    if image.mode == "1" and form.inverted:
        raise DatasetError(
            f"label file {escape(file)} has 1-bit pixels with 0 as white (like PBM): some programs "
            "write a mask like this and others its inverse, and the file does not say which; save "
            "it as PNG"
        )
    if image.mode == "P" and form.renumbered:
        return _grey_levels(image, file)
    if len(image.getbands()) == 1 and image.mode != "F":
        return _stored_values(np.asarray(image), form)
    raise DatasetError(
        f"label file {escape(file)} has {image.mode} pixels, expected one integer per pixel (8 or "
        f"16 bit grey, or a palette); {_remedy(image)}"
    )


def _grey_levels(image: Image.Image, file: ImageSource) -> Labels:
    """Return the grey levels of a palette image."""
    palette = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    if (palette != palette[:, :1]).any():
        raise DatasetError(
            f"label file {escape(file)} is a GIF with a palette of colours, which programs number "
            f"anew in each file; export the labels as PNG, or {_remedy(image)}"
        )
    return palette[np.asarray(image), 0]


def color_values(image: Image.Image, file: ImageSource) -> Labels:
    """Return the colours of a label file as numbers `[H, W]` int32: R << 16 | G << 8 | B, as in
    `#rrggbb`. A palette image is converted to its colours.

    Raises:
        DatasetError: the pixels are floats or partly transparent.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        raise DatasetError(
            f"label file {escape(file)} has {image.mode} pixels, but the keys of data.label_map "
            "are colours; use numbers as keys"
        )
    if "A" in image.getbands() and image.getchannel("A").getextrema() != (255, 255):
        raise DatasetError(
            f"label file {escape(file)} has pixels that are partly transparent, so that their "
            "colours are uncertain; save it without its alpha channel"
        )
    return _as_numbers(image)


def _as_numbers(image: Image.Image) -> Labels:
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _remedy(image: Image.Image) -> str:
    if image.mode == "F":
        return "round the values and save them as 8 or 16 bit integers"
    if image.mode in ("LA", "La", "PA"):
        return "save it without its alpha channel"
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        return "its channels are equal: save one of them, for example with image.getchannel(0)"
    colors = _common_colors(image)
    return (
        "if each colour is a class, set data.label_map: "
        f"{{{', '.join(f'{color!r}: ...' for color in colors)}}}"
    )


def _common_colors(image: Image.Image) -> list[str]:
    """Return the most frequent colours as keys of `data.label_map`."""
    colors, counts = np.unique(_as_numbers(image), return_counts=True)
    most = colors[np.argsort(-counts, kind="stable")[:SHOWN_COLORS]]
    listed = [f"#{color:06x}" for color in most.tolist()]
    return [*listed, *(["..."] if len(colors) > SHOWN_COLORS else [])]


def _is_lossless_webp(image: ImageFile.ImageFile) -> bool:
    """Whether the first frame, which is the one that is read, is compressed without loss."""
    if image.fp is None:  # the file was read completely when it was opened
        return False
    position = image.fp.tell()
    pixels = next((kind for kind in _webp_chunks(image.fp) if kind in (b"VP8L", b"VP8 ")), None)
    image.fp.seek(position)
    return pixels == b"VP8L"


def _webp_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the types of the chunks of a WebP file in order, including those inside frames."""
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        kind, size = struct.unpack("<4sI", head)
        yield kind
        # Skip only the header of a frame, so that the chunks inside it come next.
        skipped = 16 if kind == b"ANMF" else size + size % 2
        stream.seek(skipped, os.SEEK_CUR)
