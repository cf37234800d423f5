"""The EXIF orientation of images, and what it means for their labels."""

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
_MEANING = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored upside down",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees",
    7: "mirrored and turned by 90 degrees",
    8: "turned by 90 degrees",
}
_QUARTER = frozenset({5, 6, 7, 8})
"""Those that exchange height and width."""
_INVERSE = {6: 8, 8: 6}
"""The others undo themselves."""


def load_as_stored(image: Image.Image) -> tuple[Image.Image, int]:
    """The pixels as the file stores them, and the orientation that it states, 1 (upright) to 8."""
    tag = stated_tag(image)
    image.load()
    if (
        tag != UPRIGHT and stated_tag(image) == UPRIGHT
    ):  # Pillow turns some TIFFs when it loads them
        image = turn_image(image, _INVERSE.get(tag, tag))
    return image, stated_tag(image) if tag == UPRIGHT else tag


def stated_tag(image: Image.Image) -> int:
    """The orientation by its metadata, for which Pillow decodes a PNG that has none in front."""
    return tag_in(image.getexif())


def tag_in(metadata: Image.Exif) -> int:
    """The orientation that they state; upright where it is none of 1 to 8."""
    tag = metadata.get(ExifTags.Base.Orientation, UPRIGHT)
    return tag if isinstance(tag, int) and tag in _MEANING else UPRIGHT


def turn_image(image: Image.Image, tag: int) -> Image.Image:
    """The image as it is meant to be seen."""
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
    """The same for `[H, W, ...]`."""
    if tag in _QUARTER:
        pixels = pixels.swapaxes(0, 1)
    if tag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if tag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


@dataclass(frozen=True)
class ImageFrame:
    """How the pixels of an image lie, so that its labels can be laid the same way.

    Args:
        file: the image, for messages.
        size: height and width as stored.
        tag: its EXIF orientation, 1 to 8.
        rule: `data.exif_orientation`.
    """

    file: object
    size: tuple[int, int]
    tag: int = UPRIGHT
    rule: OrientationRule = None

    @property
    def turn(self) -> int:
        """The orientation by which the image is turned."""
        return UPRIGHT if self.rule == "ignore" else self.tag

    @property
    def turned_size(self) -> tuple[int, int]:
        """Height and width of the image as it is turned."""
        height, width = self.size
        return (width, height) if self.turn in _QUARTER else (height, width)

    def turn_of_labels(self, size: tuple[int, int], tag: int, labels: str) -> int:
        """The orientation by which labels are to be turned.

        Args:
            size: of the labels, as stored.
            tag: their own orientation.
            labels: their file, for the message.

        Raises:
            DatasetError: they are tagged otherwise than the image, `data.exif_orientation` is
                left out, and they have the size of the image as it is stored: whoever drew them may
                have seen it so, or turned.
        """
        if self.rule is not None:
            return tag if self.rule == "apply" else UPRIGHT
        if self.tag == tag or size != self.size:  # sizes that differ are checked elsewhere
            return tag
        raise DatasetError(self._open_question(tag, labels))

    def _open_question(self, tag: int, labels: str) -> str:
        """What is not known, and how to say it."""
        height, width = self.size
        meant = (
            "'apply' if the labels were drawn on the image as viewers show it, or to 'ignore' if "
            "they were drawn on it as it is stored, which then stays so"
        )
        if (self.tag in _QUARTER) != (tag in _QUARTER) and height != width:
            meant = "'ignore': the labels were drawn on the image as it is stored"
        return (
            f"image file {escape(self.file)} is to be {_stated(self.tag)}, its label file {labels} "
            f"to be {_stated(tag)}, and both are stored with {width}x{height} pixels: set "
            f"data.exif_orientation to {meant}"
        )


def _stated(tag: int) -> str:
    return f"{_MEANING[tag]} (EXIF orientation {tag})" if tag in _MEANING else "left as it is"
