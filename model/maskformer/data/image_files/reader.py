"""The reader of images for training, evaluation and prediction."""

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
from maskformer.data.image_files.opening import EncodedImage, ImageSource, open_image, opened_stream
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
"""The mode to which an image of another mode is converted to get its bands."""
_TOP_OF_12_BITS = 4095
_REMEDY = "install it with `pip install 'mfkernels[tiff]'`"


@dataclass(frozen=True)
class ImageReader:
    """Reads images as `[C, H, W]` uint8.

    Args:
        channels: `data.channels`: 3 means RGB (grey is repeated, alpha dropped, CMYK converted),
            any other number means images with exactly this many bands, and a list selects bands,
            counted from 1.
        scale: the values that are mapped to 0 and 255.
        orientation: `data.exif_orientation`; None also applies the orientation to images.
        max_pixels: `data.max_pixels`.
    """

    channels: int | tuple[int, ...] = _RGB
    scale: ValueScale = field(default_factory=ValueScale)
    orientation: OrientationRule = None
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, config: DataSection) -> ImageReader:
        """Make the reader that a recipe describes."""
        return cls(
            config.channels,
            ValueScale(config.value_range, config.percentiles),
            config.exif_orientation,
            config.max_pixels,
        )

    @property
    def num_channels(self) -> int:
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    def __call__(self, source: Path | bytes | Image.Image) -> Tensor:
        """Read a file, the content of one or an opened image, of which the first frame is used. The
        EXIF orientation is applied unless the rule is `ignore`.

        Raises:
            DatasetError: the file is missing, broken, not an image or too large, has another number
                of bands, or values that need `data.value_range`.
        """
        if isinstance(source, Path):
            return self.read(source)[0]
        if isinstance(source, bytes):
            return self.read(EncodedImage(source))[0]
        file = getattr(source, "filename", "")
        if file and getattr(source, "tile", ()) and _loses_depth(source):
            return self.read(Path(file))[0]
        name = escape(file) or "given"
        if 0 in source.size:
            raise DatasetError(
                f"image file {name} has {source.width}x{source.height} pixels, expected at least "
                "1x1"
            )
        bands = self._pillow_bands(source, name)
        return self._finish(bands, self._frame(Path(file), bands).turn, name)

    def read(self, file: ImageSource) -> tuple[Tensor, ImageFrame]:
        """Read a file; also return its size and orientation, which are needed to read its labels.

        Raises:
            DatasetError: as in `__call__`.
        """
        name = escape(file)
        with opened_stream(file, "image") as stream:
            bands = self._read_bands(stream, name)
            frame = self._frame(file, bands)
            return self._finish(bands, frame.turn, name), frame

    def read_size(self, file: ImageSource) -> tuple[int, int]:
        """Read height and width of an image after its orientation is applied, from its header and
        metadata only.

        Raises:
            DatasetError: the file is missing, broken, not an image or too large.
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
        """Read all bands of a file as they are stored, before selection, scaling and orientation.

        Raises:
            DatasetError: the file is missing, broken, not an image or too large.
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
        # Keep the channels-last memory order of the decoder, in which resizing is faster.
        return torch.from_numpy(np.array(turn_array(pixels, tag), order="C")).permute(2, 0, 1)

    def _select(self, bands: Bands, name: str) -> Values:
        """Select the bands of an image."""
        values = bands.values
        if self.channels == _RGB and bands.alpha:
            values = values[..., :-1]
        count = values.shape[2]
        if not self._fits(count):
            wanted = list(self.channels) if isinstance(self.channels, tuple) else self.channels
            raise DatasetError(
                f"image file {name} has {count} channel{'s' * (count != 1)}, which does not match "
                f"data.channels: {wanted}; set it to {count}, or to a list of the bands to use, "
                "counted from 1"
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
                        f"image file {name} has 16-bit colours, which need imagecodecs: {_REMEDY}"
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
        """Return the size and orientation of a TIFF that Pillow cannot open."""
        stream.seek(0)
        try:
            return tiff_size(stream, self._fits, self.max_pixels)
        except ExtraMissingError:
            raise _tifffile_missing(name, opened=False) from None

    def _pillow_bands(self, image: Image.Image, name: str) -> Bands:
        reduced = _loses_depth(image)
        if reduced and self.scale.is_given:
            raise DatasetError(
                f"image file {name} has 16-bit colours, of which an opened Pillow image keeps 8 "
                "bits: give the file instead, so that data.value_range and data.percentiles apply"
            )
        top = _TOP_OF_12_BITS if states_12_bits(image) else None
        stored, tag = load_as_stored(image)
        mode = _BANDS_OF.get(stored.mode, stored.mode)
        if self.channels == _RGB and stored.mode in _EIGHT_BITS:
            mode = "RGB"
        values = np.atleast_3d(np.asarray(stored if stored.mode == mode else stored.convert(mode)))
        if reduced:
            values = values.astype(np.uint16) << 8
        return Bands(values, tag, top=top)


def _tifffile_missing(name: str, *, opened: bool) -> DatasetError:
    return DatasetError(
        f"image file {name} is a TIFF that Pillow "
        + ("can read only in part: it" if opened else "cannot read: it is broken or")
        + f" has bands or a bit depth that need tifffile: {_REMEDY}"
    )


def _has_pages(image: Image.Image) -> bool:
    return image.format == "TIFF" and getattr(image, "n_frames", 1) > 1


def _loses_depth(image: Image.Image) -> bool:
    return is_reduced(image) or has_deep_colors(image)
