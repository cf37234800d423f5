"""Image files whose bands or bit depth Pillow cannot represent: NumPy, TIFF and 16-bit RGB PNG."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from maskformer.config.schema import MAX_BANDS
from maskformer.data.image_files.depth import Values
from maskformer.data.image_files.opening import check_pixels
from maskformer.data.image_files.orientation import UPRIGHT

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 256, 257, 258, 277, 339
"""Tags of TIFF files."""
NPY_MARK = b"\x93NUMPY"
_REAL_KINDS = "buif"
"""NumPy's dtype kinds: bool, unsigned and signed integers, floats."""


class Bands(NamedTuple):
    """The bands of an image as they are stored.

    Attributes:
        values: `[H, W, C]`, any real dtype.
        tag: the EXIF orientation.
        alpha: whether the last band is an alpha channel.
        top: the largest value at the bit depth that the file states.
    """

    values: Values
    tag: int = UPRIGHT
    alpha: bool = False
    top: float | None = None


class ExtraMissingError(Exception):
    """A package of the extra `tiff` is not installed."""


def read_npy(stream: BinaryIO, max_pixels: int) -> Bands:
    """Read an array `[H, W]`, `[H, W, C]` or `[C, H, W]`. The shorter one of the first and the last
    axis is taken for the bands.

    Raises:
        ValueError, PixelLimitError: the file has another shape or dtype, is too large, or damaged.
    """
    _, first = npy_size(stream, max_pixels)
    stream.seek(0)
    values = np.load(stream, allow_pickle=False)
    return Bands(np.moveaxis(values, 0, 2) if first else np.atleast_3d(values))


def npy_size(stream: BinaryIO, max_pixels: int) -> tuple[tuple[int, int], bool]:
    """Read height and width from the header of an array, and whether its bands come first.

    Raises:
        ValueError, PixelLimitError: as `read_npy`.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if len(shape) not in (2, 3) or dtype.kind not in _REAL_KINDS:
        raise ValueError(
            f"it is an array {list(shape)} of {dtype}, expected [H, W], [H, W, C] or [C, H, W] of "
            "numbers"
        )
    first = len(shape) == 3 and shape[0] < shape[2]
    bands = 1 if len(shape) == 2 else min(shape[0], shape[2])
    height, width = shape[1:] if first else shape[:2]
    _check_shape((height, width), bands, max_pixels)
    return (height, width), first


def read_tiff(stream: BinaryIO, fits: Callable[[int], bool], max_pixels: int) -> Bands:
    """Read the first image of a TIFF, or all its images if each of them is one band.

    Args:
        stream: the file.
        fits: returns whether an image with this number of bands is the expected one.
        max_pixels: the limit of height times width.

    Raises:
        ExtraMissingError: tifffile is needed and not installed.
        PixelLimitError: the image is too large.
        Exception: any type, if the file is damaged.
    """
    with _opened_tiff(stream) as tiff:
        source = _source(tiff, fits)
        _, first = _checked_size(source, max_pixels)
        values = source.asarray()
        page = tiff.pages.first
        alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)
        bands = np.moveaxis(values, 0, 2) if first else np.atleast_3d(values)
        return Bands(bands, _tiff_tag(tiff), alpha)


def tiff_size(
    stream: BinaryIO, fits: Callable[[int], bool], max_pixels: int
) -> tuple[tuple[int, int], int]:
    """Return height and width as stored, and the EXIF orientation, of the image that `read_tiff`
    would read.

    Raises:
        As `read_tiff`.
    """
    with _opened_tiff(stream) as tiff:
        return _checked_size(_source(tiff, fits), max_pixels)[0], _tiff_tag(tiff)


def _opened_tiff(stream: BinaryIO) -> TiffFile:
    try:
        from tifffile import TiffFile
    except ImportError:
        raise ExtraMissingError from None
    return TiffFile(stream, name="stream")


def _source(tiff: TiffFile, fits: Callable[[int], bool]) -> TiffPage | TiffPageSeries:
    """Return the first image, or the series of all images if they are its bands."""
    page, series = tiff.pages.first, tiff.series[0]
    stacked = series.ndim == 3 and series.axes.endswith("YX") and not fits(page.samplesperpixel)
    return series if stacked else page


def _checked_size(
    source: TiffPage | TiffPageSeries, max_pixels: int
) -> tuple[tuple[int, int], bool]:
    """Return height and width, and whether the bands come first."""
    axes, shape, dtype = source.axes, source.shape, source.dtype
    if dtype is None or dtype.kind not in _REAL_KINDS:
        raise ValueError(f"it has values of {dtype}, expected real numbers")
    first = len(shape) == 3 and axes.endswith("YX")
    if not first and axes not in ("YX", "YXS"):
        raise ValueError(f"its axes are {axes}, expected one image of one or several bands")
    height, width = shape[1:] if first else shape[:2]
    bands = 1 if len(shape) == 2 else shape[0 if first else 2]
    _check_shape((height, width), bands, max_pixels)
    return (height, width), first


def _tiff_tag(tiff: TiffFile) -> int:
    tag: int = tiff.pages.first.tags.valueof("Orientation", UPRIGHT)
    return tag


def read_deep_png(stream: BinaryIO, tag: int) -> Bands:
    """Read a 16-bit colour PNG, of which Pillow would keep only the upper bytes.

    Raises:
        ExtraMissingError: imagecodecs is needed and not installed.
        RuntimeError: the file is damaged.
    """
    try:
        from imagecodecs import png_decode
    except ImportError:
        raise ExtraMissingError from None
    stream.seek(0)
    values = png_decode(stream.read())
    return Bands(values, tag, alpha=values.shape[2] in (2, 4))


def has_deep_colors(image: Image.Image) -> bool:
    """Whether an unloaded image is a PNG of which Pillow would keep only the upper bytes."""
    return (
        image.format == "PNG"
        and len(image.getbands()) > 1
        and any(str(tile.args).endswith(";16B") for tile in getattr(image, "tile", ()))
    )


def is_reduced(image: Image.Image) -> bool:
    """Whether an image is a TIFF of which Pillow keeps only some bands or the upper bytes."""
    samples = samples_of(image)
    return samples > 1 and (samples != len(image.getbands()) or bits_of(image) > 8)


def bits_of(image: Image.Image) -> int:
    """Return the bits per band of a TIFF; 1 for other formats."""
    bits: int = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,)))
    return bits


def samples_of(image: Image.Image) -> int:
    """Return the number of bands of a TIFF; 1 for other formats."""
    samples: int = getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, 1)
    return samples


def sample_format(image: Image.Image) -> int:
    """Return the sample format of a TIFF: 1 for unsigned integers, 2 for signed integers, 3 for
    floats; 1 for other formats.
    """
    kind: int = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,))[0]
    return kind


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width, as stored, of an image that is not yet loaded. Pillow's own values
    include the orientation of a TIFF.
    """
    tags = getattr(image, "tag_v2", {})
    return tags.get(_HEIGHT, image.height), tags.get(_WIDTH, image.width)


def states_12_bits(image: Image.Image) -> bool:
    """Whether an image is a TIFF with a single 12-bit band."""
    return getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ()) == (12,)


def _check_shape(sides: tuple[int, int], bands: int, max_pixels: int) -> None:
    check_pixels(*sides, max_pixels)
    if not 0 < bands <= MAX_BANDS:
        raise ValueError(f"it has {bands} bands, expected 1 to {MAX_BANDS}")
