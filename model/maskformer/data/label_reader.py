"""Reading of label files and panoptic PNGs, with error messages that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskformer.config.schema import MAX_PIXELS
from maskformer.data.image_files.mat import SUFFIX, read_mat
from maskformer.data.image_files.opening import ImageSource, opened, opened_stream
from maskformer.data.image_files.orientation import (
    UPRIGHT,
    ImageFrame,
    load_as_stored,
    turn_array,
    turn_image,
)
from maskformer.data.label_files import (
    Labels,
    check_depth,
    check_lossless,
    color_values,
    grey_values,
    sample_form,
)
from maskformer.errors import DatasetError
from maskformer.system.text import escape


def read_labels(
    file: ImageSource,
    frame: ImageFrame | None = None,
    max_pixels: int = MAX_PIXELS,
    *,
    colors: bool = False,
) -> Labels:
    """Read a label file (1 to 16 bit, grey or palette, PNG or TIFF, or the variable `S` of a
    MATLAB file) as raw values `[H, W]`.

    Args:
        file: the label file.
        frame: the size and EXIF orientation of the image that the labels belong to.
        max_pixels: `data.max_pixels`.
        colors: return colours as values: R << 16 | G << 8 | B, as in `#rrggbb`.

    Raises:
        DatasetError: the file is missing, broken or lossy, has 16 bits per channel, or has colours
            instead of one value per pixel; or the values are ambiguous (see `grey_values`), or
            their orientation relative to the image is (see `ImageFrame.orientation_of_labels`).
    """
    if isinstance(file, Path) and file.suffix.lower() == SUFFIX:
        return _matlab_labels(file, frame, max_pixels, colors=colors)
    with opened(file, "label", max_pixels) as image:
        check_lossless(image, file)
        check_depth(image, file)
        form = sample_form(image)
        pixels = _oriented(image, file, frame)
        return color_values(pixels, file) if colors else grey_values(pixels, form, file)


def read_palette(file: ImageSource) -> list[tuple[int, int, int]]:
    """Return the RGB colours of the values 0, 1, ... of a palette image, or [] without a palette.

    Raises:
        DatasetError: the file is missing or broken.
    """
    with opened(file, "label") as image:
        # The values of a GIF are grey levels, see `grey_values`.
        numbered = image.mode == "P" and image.format != "GIF"
        channels = iter(image.getpalette("RGB") or () if numbered else ())
        return list(zip(channels, channels, channels, strict=True))


def read_segment_ids(
    file: Path, frame: ImageFrame | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.int32]:
    """Read a COCO panoptic PNG as segment ids `[H, W]`: R + 256 G + 65536 B.

    Args:
        file: the PNG.
        frame, max_pixels: as in `read_labels`.

    Raises:
        DatasetError: the file is missing, broken or lossy, has 16 bits per channel, is not a colour
            image, or its orientation is ambiguous as in `read_labels`.
    """
    with opened(file, "panoptic", max_pixels) as image:
        check_lossless(image, file, "panoptic")
        check_depth(image, file, "panoptic")
        pixels = _oriented(image, file, frame)
        if pixels.mode not in ("RGB", "RGBA"):
            raise DatasetError(
                f"panoptic file {escape(file)} has {pixels.mode} pixels, expected RGB with "
                "id = R + 256 G + 65536 B"
            )
        return rgb_to_id(np.asarray(pixels)[..., :3])


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Convert colours `[..., 3]` to segment ids: R + 256 G + 65536 B."""
    channels = rgb.astype(np.int32)
    ids: NDArray[np.int32] = channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16)
    return ids


def id_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Convert segment ids in 0..2^24-1 to colours; the inverse of `rgb_to_id`."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], -1).astype(np.uint8)


def check_same_size(
    image: Tensor, image_file: ImageSource, labels: NDArray[np.integer], label_file: ImageSource
) -> None:
    """Check that labels have the size of their image.

    Raises:
        DatasetError: the sizes differ.
    """
    height, width = image.shape[-2:]
    if labels.shape == (height, width):
        return
    if labels.shape == (width, height):
        cause = "one of the two is rotated by 90 degrees (the image's EXIF orientation is applied)"
    else:
        cause = "the label file belongs to another image, or one of the two was resized"
    raise DatasetError(
        f"label file {escape(label_file)} is {labels.shape[1]}x{labels.shape[0]} pixels, "
        f"its image {escape(image_file)} is {width}x{height}: {cause}"
    )


def _matlab_labels(
    file: Path, frame: ImageFrame | None, max_pixels: int, *, colors: bool
) -> Labels:
    if colors:
        raise DatasetError(
            f"label file {escape(file)} holds numbers, but the keys of data.label_map are colours; "
            "use numbers as keys"
        )
    with opened_stream(file, "label") as stream:
        values = read_mat(stream, max_pixels)
    if frame is None:
        return values
    return turn_array(values, frame.orientation_of_labels(values.shape, UPRIGHT, escape(file)))


def _oriented(image: Image.Image, file: ImageSource, frame: ImageFrame | None) -> Image.Image:
    """Load the pixels and apply their own EXIF orientation, or none, as the image's frame
    decides.
    """
    stored, tag = load_as_stored(image)
    if frame is not None:
        tag = frame.orientation_of_labels((stored.height, stored.width), tag, escape(file))
    return turn_image(stored, tag)
