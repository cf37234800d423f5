"""The EXIF orientation of images, and the orientation of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from maskformer.errors import DatasetError
from maskformer.system.text import escape

T = TypeVar("T", bound=np.generic)
OrientationRule = Literal["apply", "ignore"] | None
UPRIGHT = 1
_DESCRIPTION = {
    2: "mirrored",
    3: "rotated by 180 degrees",
    4: "mirrored upside down",
    5: "mirrored and rotated by 90 degrees",
    6: "rotated by 90 degrees",
    7: "mirrored and rotated by 90 degrees",
    8: "rotated by 90 degrees",
}
_QUARTER = frozenset({5, 6, 7, 8})
"""The orientations that swap height and width."""
_INVERSE = {6: 8, 8: 6}
"""Orientations whose inverse is another one; the others are their own inverse."""


def load_as_stored(image: Image.Image) -> tuple[Image.Image, int]:
    """Return the pixels as stored in the file, and its EXIF orientation, 1 (upright) to 8."""
    tag = stated_tag(image)
    image.load()
    # Pillow applies the orientation of some TIFFs while loading them.
    if tag != UPRIGHT and stated_tag(image) == UPRIGHT:
        image = turn_image(image, _INVERSE.get(tag, tag))
    return image, stated_tag(image) if tag == UPRIGHT else tag


def stated_tag(image: Image.Image) -> int:
    """Return the EXIF orientation. For a PNG without metadata before its pixels, Pillow decodes the
    pixels to find it.
    """
    return tag_in(image.getexif())


def tag_in(metadata: Image.Exif) -> int:
    """Return the orientation in EXIF metadata; upright if it is missing or invalid."""
    tag = metadata.get(ExifTags.Base.Orientation, UPRIGHT)
    return tag if isinstance(tag, int) and tag in _DESCRIPTION else UPRIGHT


def turn_image(image: Image.Image, tag: int) -> Image.Image:
    """Apply an EXIF orientation to an image."""
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(methods[tag]) if tag in methods else image


def turn_array(pixels: NDArray[T], tag: int) -> NDArray[T]:
    """Apply an EXIF orientation to an array `[H, W, ...]`."""
    if tag in _QUARTER:
        pixels = pixels.swapaxes(0, 1)
    if tag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if tag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


@dataclass(frozen=True)
class ImageFrame:
    """The stored size and the orientation of an image, from which the orientation of its labels
    follows.

    Args:
        file: the image, for messages.
        size: height and width as stored.
        tag: the EXIF orientation of the image, 1 to 8.
        rule: `data.exif_orientation`.
    """

    file: object
    size: tuple[int, int]
    tag: int = UPRIGHT
    rule: OrientationRule = None

    @property
    def turn(self) -> int:
        """The orientation that is applied to the image."""
        return UPRIGHT if self.rule == "ignore" else self.tag

    @property
    def turned_size(self) -> tuple[int, int]:
        """Height and width of the image after its orientation is applied."""
        height, width = self.size
        return (width, height) if self.turn in _QUARTER else (height, width)

    def orientation_of_labels(self, size: tuple[int, int], tag: int, labels: str) -> int:
        """Return the orientation to apply to labels.

        Args:
            size: height and width of the labels as stored.
            tag: the EXIF orientation of the label file.
            labels: the label file, for the message.

        Raises:
            DatasetError: it is ambiguous. The labels have another orientation tag than the image
                but the same stored size, and `data.exif_orientation` is not set, so they may have
                been drawn on the image as stored or as shown by viewers.
        """
        if self.rule is not None:
            return tag if self.rule == "apply" else UPRIGHT
        if self.tag == tag or size != self.size:  # sizes that differ are checked elsewhere
            return tag
        raise DatasetError(self._ambiguity(tag, labels))

    def _ambiguity(self, tag: int, labels: str) -> str:
        height, width = self.size
        value = (
            "'apply' if the labels were drawn on the image as viewers show it, or to 'ignore' if "
            "they were drawn on it as it is stored, which is then used as it is"
        )
        if (self.tag in _QUARTER) != (tag in _QUARTER) and height != width:
            value = "'ignore': the labels were drawn on the image as it is stored"
        return (
            f"image file {escape(self.file)} is to be {_describe(self.tag)}, its label file "
            f"{labels} to be {_describe(tag)}, and both are stored with {width}x{height} pixels: "
            f"set data.exif_orientation to {value}"
        )


def _describe(tag: int) -> str:
    if tag not in _DESCRIPTION:
        return "left as it is"
    return f"{_DESCRIPTION[tag]} (EXIF orientation {tag})"
