"""One reader of images for training, evaluation and prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from maskformer.config.schema import MAX_PIXELS, DataSection
from maskformer.data.image_files.arrays import (
    NPY_MARK,
    TIFF_MARKS,
    Bands,
    ExtraMissingError,
    has_deep_colors,
    is_reduced,
    npy_size,
    read_deep_png,
    read_npy,
    read_tiff,
    samples_of,
    states_12_bits,
    stored_size,
    tiff_size,
)
from maskformer.data.image_files.depth import Values, ValueScale
from maskformer.data.image_files.opening import ImageSource, open_image, opened_stream
from maskformer.data.image_files.orientation import (
    ImageFrame,
    OrientationRule,
    load_as_stored,
    stated_tag,
    turn_array,
)
from maskformer.data.image_files.png import png_tag
from maskformer.errors import DatasetError
from maskformer.system.text import escape

_RGB = 3
_EIGHT_BITS = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
)
_BANDS_OF = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB", "HSV": "RGB"}
"""The mode whose bands are the values of another one."""
_TOP_OF_12_BITS = 4095
_REMEDY = "install it with `pip install 'mfkernels[tiff]'`"


@dataclass(frozen=True)
class ImageReader:
    """Reads images as `[C, H, W]` uint8.

    Args:
        channels: `data.channels`: 3 is RGB (grey is repeated, opacity left out, CMYK converted),
            another number stands for images of exactly so many bands, and a list for the bands that
            are taken, counted from 1.
        scale: which values become 0 and 255.
        orientation: `data.exif_orientation`; None turns images too.
        max_pixels: `data.max_pixels`.
    """

    channels: int | tuple[int, ...] = _RGB
    scale: ValueScale = field(default_factory=ValueScale)
    orientation: OrientationRule = None
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, config: DataSection) -> ImageReader:
        """What a recipe says."""
        return cls(
            config.channels,
            ValueScale(config.value_range, config.percentiles),
            config.exif_orientation,
            config.max_pixels,
        )

    @property
    def num_channels(self) -> int:
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    def __call__(self, source: Path | Image.Image) -> Tensor:
        """The pixels of a file or of an opened image, turned unless the rule is `ignore`; of
        several frames, the first.

        Raises:
            DatasetError: missing, broken, not an image, too large, of another number of bands, or
                of values that need `data.value_range`.
        """
        if isinstance(source, Path):
            return self.read(source)[0]
        file = getattr(source, "filename", "")
        if file and getattr(source, "tile", ()) and _loses_depth(source):
            return self.read(Path(file))[0]
        name = escape(file) or "given"
        bands = self._pillow_bands(source, name)
        return self._finish(bands, self._frame(Path(file), bands).turn, name)

    def read(self, file: ImageSource) -> tuple[Tensor, ImageFrame]:
        """The pixels of a file, and how they lie, by which its labels are read.

        Raises:
            DatasetError: as above.
        """
        name = escape(file)
        with opened_stream(file, "image") as stream:
            bands = self._read_bands(stream, name)
            frame = self._frame(file, bands)
            return self._finish(bands, frame.turn, name), frame

    def read_size(self, file: ImageSource) -> tuple[int, int]:
        """Height and width of an image as it is turned, by its header and metadata alone.

        Raises:
            DatasetError: missing, broken, not an image or too large.
        """
        with opened_stream(file, "image") as stream:
            mark = stream.read(8)
            stream.seek(0)
            if mark.startswith(NPY_MARK):
                return npy_size(stream, self.max_pixels)[0]
            try:
                image = open_image(stream, self.max_pixels)
            except UnidentifiedImageError:
                if not mark.startswith(TIFF_MARKS):
                    raise
                size, tag = self._tiff_size(stream, escape(file))
            else:
                with image:
                    late = image.format == "PNG" and "exif" not in image.info
                    size, tag = stored_size(image), png_tag(stream) if late else stated_tag(image)
            return ImageFrame(file, size, tag, self.orientation).turned_size

    def stored(self, file: Path) -> Bands:
        """What is in a file, before bands are taken, scaled and turned.

        Raises:
            DatasetError: missing, broken, not an image or too large.
        """
        with opened_stream(file, "image") as stream:
            return self._read_bands(stream, escape(file))

    def _frame(self, file: ImageSource, bands: Bands) -> ImageFrame:
        height, width = bands.values.shape[:2]
        return ImageFrame(file, (height, width), bands.tag, self.orientation)

    def _finish(self, bands: Bands, tag: int, name: str) -> Tensor:
        values = self._select(bands, name)
        try:
            pixels = self.scale.to_uint8(values, bands.top)
        except ValueError as error:
            raise DatasetError(f"image file {name} has {error}") from None
        if self.channels == _RGB and pixels.shape[2] == 1:
            pixels = pixels.repeat(_RGB, 2)
        # In memory as it was decoded: resizing is faster so.
        return torch.from_numpy(np.array(turn_array(pixels, tag), order="C")).permute(2, 0, 1)

    def _select(self, bands: Bands, name: str) -> Values:
        """The wanted bands of an image."""
        values = bands.values
        if self.channels == _RGB and bands.alpha:
            values = values[..., :-1]
        count = values.shape[2]
        if not self._fits(count):
            wanted = list(self.channels) if isinstance(self.channels, tuple) else self.channels
            raise DatasetError(
                f"image file {name} has {count} channel{'s' * (count != 1)}, expected what "
                f"data.channels: {wanted} says; set it to {count}, or to a list of the bands that "
                "are to be taken, counted from 1"
            )
        if isinstance(self.channels, tuple):
            values = values[..., [band - 1 for band in self.channels]]
        return values

    def _fits(self, count: int) -> bool:
        if isinstance(self.channels, tuple):
            return count >= max(self.channels)
        return count == self.channels or (self.channels == _RGB and count == 1)

    def _read_bands(self, stream: BinaryIO, name: str) -> Bands:
        mark = stream.read(8)
        stream.seek(0)
        if mark.startswith(NPY_MARK):
            return read_npy(stream, self.max_pixels)
        try:
            image = open_image(stream, self.max_pixels)
        except UnidentifiedImageError:
            if not mark.startswith(TIFF_MARKS):
                raise
            return self._read_tiff(stream, None, name)
        with image:
            stacked = _has_pages(image) and not self._fits(len(image.getbands()))
            if is_reduced(image) or stacked:
                return self._read_tiff(stream, image, name)
            if has_deep_colors(image) and (self.scale.is_given or self.channels != _RGB):
                try:
                    return read_deep_png(stream, load_as_stored(image)[1])
                except ExtraMissingError:
                    raise DatasetError(
                        f"image file {name} has colours of 16 bits and needs imagecodecs: {_REMEDY}"
                    ) from None
            return self._pillow_bands(image, name)

    def _read_tiff(self, stream: BinaryIO, image: Image.Image | None, name: str) -> Bands:
        stream.seek(0)
        try:
            return read_tiff(stream, self._fits, self.max_pixels)
        except ExtraMissingError:
            whole = image is not None and len(image.getbands()) == samples_of(image)
            if image is not None and whole and self.channels == _RGB and not self.scale.is_given:
                return self._pillow_bands(image, name)
            raise _tifffile_missing(name, opened=image is not None) from None

    def _tiff_size(self, stream: BinaryIO, name: str) -> tuple[tuple[int, int], int]:
        """Of a TIFF that Pillow cannot open."""
        stream.seek(0)
        try:
            return tiff_size(stream, self._fits, self.max_pixels)
        except ExtraMissingError:
            raise _tifffile_missing(name, opened=False) from None

    def _pillow_bands(self, image: Image.Image, name: str) -> Bands:
        shallow = _loses_depth(image)
        if shallow and self.scale.is_given:
            raise DatasetError(
                f"image file {name} has colours of 16 bits, of which an opened Pillow image keeps "
                "8: give the file instead, so that data.value_range and data.percentiles apply"
            )
        top = _TOP_OF_12_BITS if states_12_bits(image) else None
        stored, tag = load_as_stored(image)
        mode = _BANDS_OF.get(stored.mode, stored.mode)
        if self.channels == _RGB and stored.mode in _EIGHT_BITS:
            mode = "RGB"
        values = np.atleast_3d(np.asarray(stored if stored.mode == mode else stored.convert(mode)))
        if shallow:
            values = values.astype(np.uint16) << 8
        return Bands(values, tag, top=top)


def _tifffile_missing(name: str, *, opened: bool) -> DatasetError:
    return DatasetError(
        f"image file {name} is a TIFF that Pillow "
        + ("reads in part only: it" if opened else "cannot read: it is broken or")
        + f" has bands or a depth that need tifffile: {_REMEDY}"
    )


def _has_pages(image: Image.Image) -> bool:
    return image.format == "TIFF" and getattr(image, "n_frames", 1) > 1


def _loses_depth(image: Image.Image) -> bool:
    return is_reduced(image) or has_deep_colors(image)
