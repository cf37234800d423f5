"""Reading label files and segment ids, with messages that name the file."""

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
    """Reads a label file (1 to 16 bit, grey or palette, PNG or TIFF, or the variable `S` of a
    MATLAB file) as raw values, `[H, W]`.

    Args:
        frame: how the image lies whose labels they are.
        max_pixels: `data.max_pixels`.
        colors: take colours for values: R << 16 | G << 8 | B, as in `#rrggbb`.

    Raises:
        DatasetError: missing, broken, compressed with loss, of 16 bits per channel, or coloured
            pixels instead of one value per pixel; or it is open which of two values was meant, see
            `grey_values`, or whether they lie as the image does, see `ImageFrame.turn_of_labels`.
    """
    if isinstance(file, Path) and file.suffix.lower() == SUFFIX:
        return _matlab_labels(file, frame, max_pixels, colors=colors)
    with opened(file, "label", max_pixels) as image:
        check_lossless(image, file)
        check_depth(image, file)
        form = sample_form(image)
        pixels = _turned(image, file, frame)
        return color_values(pixels, file) if colors else grey_values(pixels, form, file)


def read_palette(file: ImageSource) -> list[tuple[int, int, int]]:
    """The RGB colours of the values 0, 1, ... of a palette image; none of an image without one.

    Raises:
        DatasetError: missing or broken.
    """
    with opened(file, "label") as image:
        channels = iter(image.getpalette("RGB") or () if image.mode == "P" else ())
        return list(zip(channels, channels, channels, strict=True))


def read_segment_ids(
    file: Path, frame: ImageFrame | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.int32]:
    """Reads a COCO panoptic PNG as ids `[H, W]`: R + 256 G + 65536 B.

    Args:
        frame, max_pixels: as in `read_labels`.

    Raises:
        DatasetError: missing, broken, compressed with loss, of 16 bits per channel or not a colour
            image, or as in `read_labels`.
    """
    with opened(file, "panoptic", max_pixels) as image:
        check_lossless(image, file, "panoptic")
        check_depth(image, file, "panoptic")
        pixels = _turned(image, file, frame)
        if pixels.mode not in ("RGB", "RGBA"):
            raise DatasetError(
                f"panoptic file {escape(file)} has {pixels.mode} pixels, expected RGB with "
                "id = R + 256 G + 65536 B"
            )
        return rgb_to_id(np.asarray(pixels)[..., :3])


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Segment ids of `[..., 3]` colours: R + 256 G + 65536 B."""
    channels = rgb.astype(np.int32)
    ids: NDArray[np.int32] = channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16)
    return ids


def id_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The colours that stand for segment ids in 0..2^24-1; the inverse of `rgb_to_id`."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], -1).astype(np.uint8)


def check_same_size(
    image: Tensor, image_file: ImageSource, labels: NDArray[np.integer], label_file: ImageSource
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
        f"label file {escape(label_file)} is {labels.shape[1]}x{labels.shape[0]} pixels, "
        f"its image {escape(image_file)} is {width}x{height}: {cause}"
    )


def _matlab_labels(
    file: Path, frame: ImageFrame | None, max_pixels: int, *, colors: bool
) -> Labels:
    if colors:
        raise DatasetError(
            f"label file {escape(file)} holds numbers, but the keys of data.label_map are colours; "
            "give numbers as keys"
        )
    with opened_stream(file, "label") as stream:
        values = read_mat(stream, max_pixels)
    if frame is None:
        return values
    return turn_array(values, frame.turn_of_labels(values.shape, UPRIGHT, escape(file)))


def _turned(image: Image.Image, file: ImageSource, frame: ImageFrame | None) -> Image.Image:
    """The pixels, turned as the EXIF orientation and the image that they belong to say."""
    stored, tag = load_as_stored(image)
    if frame is not None:
        tag = frame.turn_of_labels((stored.height, stored.width), tag, escape(file))
    return turn_image(stored, tag)
