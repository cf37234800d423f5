"""Reading image and label files, with messages that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from maskformer.data.label_files import (
    Labels,
    check_lossless,
    color_values,
    grey_values,
    largest_sample,
)
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


def read_image(file: Path) -> Tensor:
    """Reads an image as `[3, H, W]` uint8 RGB, turned as its EXIF orientation says.

    Of several frames, the first.

    Raises:
        DatasetError: missing, broken, not an image, or larger than `FILE_LIMIT` or than Pillow
            allows (178 million pixels).
    """
    with _opened(file, "image") as opened:
        image = _loaded(opened)
        if image.mode.startswith("I"):
            # Pillow clips 16-bit grey to 255 when it converts; keep the upper byte instead.
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_labels(file: Path, *, colors: bool = False) -> Labels:
    """Reads a label file (1 to 16 bit, grey or palette, PNG or TIFF) as raw values, `[H, W]`.

    Args:
        colors: take colours for values: R << 16 | G << 8 | B, as in `#rrggbb`.

    Raises:
        DatasetError: missing, broken, compressed with loss, or coloured pixels instead of one value
            per pixel.
    """
    with _opened(file, "label") as image:
        check_lossless(image, file)
        largest = largest_sample(image)
        pixels = _loaded(image)
        return color_values(pixels, file) if colors else grey_values(pixels, largest, file)


def read_segment_ids(file: Path) -> NDArray[np.int32]:
    """Reads a COCO panoptic PNG as ids `[H, W]`: R + 256 G + 65536 B.

    Raises:
        DatasetError: missing, broken, compressed with loss or not a colour image.
    """
    with _opened(file, "panoptic") as image:
        check_lossless(image, file, "panoptic")
        if image.mode not in ("RGB", "RGBA"):
            raise DatasetError(
                f"panoptic file {file} has {image.mode} pixels, expected RGB with "
                "id = R + 256 G + 65536 B"
            )
        return rgb_to_id(np.asarray(_loaded(image))[..., :3])


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Segment ids of `[..., 3]` colours: R + 256 G + 65536 B."""
    channels = rgb.astype(np.int32)
    ids: NDArray[np.int32] = channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16)
    return ids


def id_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The colours that stand for segment ids in 0..2^24-1; the inverse of `rgb_to_id`."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], -1).astype(np.uint8)


def check_same_size(
    image: Tensor, image_file: Path, labels: NDArray[np.integer], label_file: Path
) -> None:
    """Refuses labels that were drawn for another image.

    Raises:
        DatasetError: the sizes differ.
    """
    height, width = image.shape[-2:]
    if labels.shape == (height, width):
        return
    if labels.shape == (width, height):
        cause = "one of the two is turned by 90 degrees (EXIF orientation of the image is applied)"
    else:
        cause = "the label file belongs to another image, or one of the two was resized"
    raise DatasetError(
        f"label file {label_file} is {labels.shape[1]}x{labels.shape[0]} pixels, "
        f"its image {image_file} is {width}x{height}: {cause}"
    )


@contextmanager
def _opened(file: Path, what: str) -> Iterator[ImageFile.ImageFile]:
    """An image, not yet loaded; whatever goes wrong with its pixels becomes a `DatasetError`."""
    name = escape(file)
    try:
        with (
            open_regular(file, FILE_LIMIT) as stream,
            Image.open(stream, formats=_formats()) as image,
        ):
            if 0 in image.size:
                raise ValueError(f"it has {image.width}x{image.height} pixels")
            yield image
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{what} file {name} does not exist") from None
    except Exception as error:  # broken files make decoders raise any type
        raise DatasetError(
            f"{what} file {name} cannot be read ({_reason(error)}); it is broken or not an image: "
            "replace or remove it"
        ) from None


def _loaded(image: Image.Image) -> Image.Image:
    """The pixels, turned as the EXIF orientation says."""
    image.load()
    return ImageOps.exif_transpose(image)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(_formats())}"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return escape(error) or type(error).__name__
