"""What a label file stores comes back, and files that cannot hold labels are named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hostile.images import png
from numpy.typing import NDArray
from PIL import Image

from maskformer.data.image_files.reader import ImageReader
from maskformer.data.label_reader import read_labels, read_palette, read_segment_ids
from maskformer.errors import DatasetError


def grey_png(values: NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG of so many bits, which Pillow does not write."""
    packed = [
        np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
        for row in values
    ]

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width = values.shape
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))),
            chunk(b"IEND", b""),
        ]
    )


def grey_tiff(values: NDArray[Any], bits: int, white: int = 1, form: int = 1) -> bytes:
    """An uncompressed grey TIFF in one strip; rows fill whole bytes.

    Args:
        white: the tag PhotometricInterpretation; 0 where 0 is white.
        form: the tag SampleFormat.
    """
    strip = values.tobytes()
    if bits < 8:
        strip = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: 0, 277: 1, 278: height}
    tags |= {279: len(strip), 339: form}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return head + entries + b"\0\0\0\0" + strip


def bmp(values: NDArray[np.uint8], bits: int, colors: NDArray[np.uint8], header: int = 40) -> bytes:
    """A BMP with a palette `[N, 3]`; rows fill whole words."""
    height, width = values.shape
    body = np.packbits(np.unpackbits(values[::-1, :, None], axis=2)[..., 8 - bits :]).tobytes()
    palette = np.pad(colors, ((0, 0), (0, int(header == 40)))).tobytes()
    start = 14 + header + len(palette)
    head = struct.pack("<2sIII", b"BM", start + len(body), 0, start)
    if header == 40:
        sizes = (40, width, height, 1, bits, 0, len(body), 0, 0, len(colors), 0)
        return head + struct.pack("<IiiHHIIiiII", *sizes) + palette + body
    return head + struct.pack("<IHHHH", header, width, height, 1, bits) + palette + body


def grid(largest: int) -> NDArray[np.uint8]:
    return (np.arange(64, dtype=np.uint8).reshape(8, 8) % (largest + 1)).astype(np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_few_bits(tmp_path: Path, bits: int) -> None:
    values = grid(min(2**bits - 1, 60))
    (tmp_path / "a.png").write_bytes(grey_png(values, bits))
    assert np.array_equal(read_labels(tmp_path / "a.png"), values)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_tiff_of_few_bits(tmp_path: Path, bits: int) -> None:
    values = grid(2**bits - 1)
    (tmp_path / "a.tif").write_bytes(grey_tiff(values, bits))
    assert np.array_equal(read_labels(tmp_path / "a.tif"), values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tiff_in_which_0_is_white(tmp_path: Path, bits: int) -> None:
    values = grid(min(2**bits - 1, 60))
    (tmp_path / "a.tif").write_bytes(grey_tiff(values, bits, white=0))
    assert np.array_equal(read_labels(tmp_path / "a.tif"), values)
    stored = read_labels(tmp_path / "a.tif", colors=True) >> 16
    assert np.array_equal(stored, 255 - values * (255 // (2**bits - 1)))


def test_bits_of_which_0_is_white(tmp_path: Path) -> None:
    bits = b"P1 8 8\n" + b" ".join(b"%d" % value for value in grid(1).ravel())
    packed = b"P4 8 8\n" + np.packbits(grid(1)).tobytes()
    for content in (bits, packed, grey_tiff(grid(1), 1, white=0)):
        (tmp_path / "a.pbm").write_bytes(content)
        with pytest.raises(DatasetError, match=r"a\.pbm has 1-bit pixels with 0 as white"):
            read_labels(tmp_path / "a.pbm")
        values = read_labels(tmp_path / "a.pbm", colors=True)
        assert np.array_equal(values, (1 - grid(1).astype(np.int32)) * 0xFFFFFF)


@pytest.mark.parametrize(
    ("dtype", "form", "least"),
    [
        (np.int8, 2, -9), (np.int16, 2, -9), (np.int32, 2, -9),
        (np.uint8, 1, 190), (np.uint16, 1, 65_000), (np.uint32, 1, 2**32 - 64),
    ],
)  # fmt: skip
def test_tiff_of_integers(tmp_path: Path, dtype: type[np.integer], form: int, least: int) -> None:
    values = (np.arange(64).reshape(8, 8) + least).astype(dtype)
    (tmp_path / "a.tif").write_bytes(grey_tiff(values, 8 * values.itemsize, form=form))
    assert np.array_equal(read_labels(tmp_path / "a.tif"), values)


RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)


@pytest.mark.parametrize("header", [12, 40])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize(
    "colors",
    [RAMP[::255], RAMP[::-255], RAMP[:16], RAMP[:], RAMP[::17], RAMP[:16] // [1, 2, 3]],
    ids=["black and white", "white and black", "16 greys", "256 greys", "stretched", "colours"],
)
def test_palettes_of_bmp(tmp_path: Path, colors: NDArray[np.uint8], bits: int, header: int) -> None:
    """Pillow leaves out those that are grey, and then takes indices of 4 bits for bytes, and those
    of 8 bits, where there are two, for bits.
    """
    size = (2**bits if header == 12 else min(2**bits, len(colors)), 3)
    palette = np.resize(colors, size).astype(np.uint8)
    values = np.tile(grid(min(len(palette) - 1, 60)), (1, 4))
    (tmp_path / "a.bmp").write_bytes(bmp(values, bits, palette, header))
    assert np.array_equal(read_labels(tmp_path / "a.bmp"), values)
    shown = ImageReader()(tmp_path / "a.bmp").permute(1, 2, 0)
    assert np.array_equal(shown, palette[values][..., ::-1])


@pytest.mark.parametrize("largest", [1, 7, 20, 254, 255, 300, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_portable_grey_map(tmp_path: Path, largest: int, plain: bool) -> None:
    values = np.linspace(0, largest, 64).round().astype(np.uint16).reshape(8, 8)
    stored = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    if plain:
        stored = b" ".join(b"%d" % value for value in values.ravel())
    (tmp_path / "a.pgm").write_bytes(b"P%d 8 8 %d\n" % (2 if plain else 5, largest) + stored)
    assert np.array_equal(read_labels(tmp_path / "a.pgm"), values)


def color_tiff(values: NDArray[np.uint16]) -> bytes:
    """An uncompressed TIFF of 16 bits with the channels of `[H, W, C]`."""
    height, width, channels = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 2, 273: 0, 277: channels, 278: height}
    tags[279] = values.nbytes
    bits_at = 8 + 2 + 12 * len(tags) + 4
    tags |= {258: bits_at, 273: bits_at + 2 * channels}
    entries = b"".join(
        struct.pack("<HHII", tag, *((3, channels) if tag == 258 else (4, 1)), value)
        for tag, value in tags.items()
    )
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    return head + entries + b"\0\0\0\0" + bits + values.astype("<u2").tobytes()


@pytest.mark.parametrize(
    ("form", "channels"),
    [("PNG", 3), ("PNG", 4), ("TIFF", 3), ("TIFF", 4), ("PPM", 3), ("plain PPM", 3)],
)
def test_channels_of_16_bits(tmp_path: Path, form: str, channels: int) -> None:
    """Pillow keeps the upper byte, of which all classes here have the same."""
    values = np.stack([grid(20)] * channels, -1).astype(np.uint16)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    file = tmp_path / "a.png"
    if form == "PNG":
        file.write_bytes(png(8, 8, 16, {3: 2, 4: 6}[channels], rows))
    elif form == "TIFF":
        file.write_bytes(color_tiff(values))
    else:
        plain = form == "plain PPM"
        stored = values.astype(">u2")
        body = b" ".join(b"%d" % value for value in stored.ravel()) if plain else stored.tobytes()
        file.write_bytes(b"P%d 8 8 65535\n" % (3 if plain else 6) + body)
    said = r"file .*a\.png has 16 bits per channel, of which the lower 8 would be lost, expected 8"
    for colors in (False, True):
        with pytest.raises(DatasetError, match=f"^label {said}"):
            read_labels(file, colors=colors)
    with pytest.raises(DatasetError, match=f"^panoptic {said}"):
        read_segment_ids(file)


def test_grey_and_opacity_of_16_bits(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 8, 16, 4, bytes(8 * (1 + 8 * 4))))
    with pytest.raises(DatasetError, match=r"a\.png has 16 bits per channel"):
        read_labels(tmp_path / "a.png")


def save(folder: Path, form: str, mode: str = "L", **options: object) -> Path:
    file = folder / "a.png"
    Image.fromarray(grid(20)).convert(mode).save(file, form, **options)
    return file


@pytest.mark.parametrize(
    ("form", "mode", "options", "name"),
    [
        ("JPEG", "L", {}, "JPEG"),
        ("JPEG", "RGB", {"quality": 100}, "JPEG"),
        ("WEBP", "RGB", {"quality": 100}, "WebP"),
        ("WEBP", "RGBA", {}, "WebP"),
        ("JPEG2000", "L", {}, "JPEG 2000"),
        ("AVIF", "RGB", {}, "AVIF"),
        ("TIFF", "L", {"compression": "jpeg"}, "JPEG"),
    ],
)
def test_formats_that_lose_values(
    tmp_path: Path, form: str, mode: str, options: dict[str, object], name: str
) -> None:
    try:
        file = save(tmp_path, form, mode, **options)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    with pytest.raises(DatasetError, match=rf"label file .*a\.png is compressed as {name}, which"):
        read_labels(file)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF", "TGA"])
def test_formats_that_keep_values(tmp_path: Path, form: str) -> None:
    file = save(tmp_path, form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    assert np.array_equal(read_labels(file), grid(20))


@pytest.mark.parametrize("values", [[0, 2, 5], [255, 0, 255], [7, 7, 7], [3, 2, 1]])
def test_greys_of_gif(tmp_path: Path, values: list[int]) -> None:
    """Pillow writes greys as a palette of those that are there."""
    file = tmp_path / "a.gif"
    Image.fromarray(np.array([values], np.uint8)).save(file)
    assert read_labels(file).tolist() == [values]
    assert read_palette(file) == []


def test_colours_of_gif(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2, 3]], np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 2, 3]]
    image.save(tmp_path / "a.gif")
    with pytest.raises(DatasetError, match=r"number anew .* as PNG, or .*label_map: {'#000000': "):
        read_labels(tmp_path / "a.gif")
    assert read_labels(tmp_path / "a.gif", colors=True).tolist() == [[0, 0x008000, 0x808000]]


def test_lossless_webp_holds_colours(tmp_path: Path) -> None:
    file = save(tmp_path, "WEBP", "RGB", lossless=True)
    with pytest.raises(DatasetError, match="its channels are equal: save one of them"):
        read_labels(file)
    assert np.array_equal(read_labels(file, colors=True), grid(20).astype(np.int32) * 0x010101)


def test_what_comes_before_the_pixels_of_webp(tmp_path: Path) -> None:
    """Colour profiles may be longer than any head of the file, and name a chunk."""
    profile = b"VP8 VP8L" + bytes(6001)
    values = grid(20).astype(np.int32) * 0x010101
    frames = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]}
    for more in ({}, frames):
        file = save(tmp_path, "WEBP", "RGB", lossless=True, icc_profile=profile, **more)
        assert np.array_equal(read_labels(file, colors=True), values)
        file = save(tmp_path, "WEBP", "RGBA", icc_profile=profile, **more)
        with pytest.raises(DatasetError, match=r"a\.png is compressed as WebP"):
            read_labels(file, colors=True)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGB", (4, 2), (255, 0, 16)), r"each colour is a class.*label_map: {'#ff0010'"),
        (Image.new("RGB", (4, 2), (7, 7, 7)), "its channels are equal: save one of them"),
        (Image.new("LA", (4, 2), (7, 255)), "LA pixels, .* without its alpha channel"),
        (Image.fromarray(np.full((2, 4), 1.5, np.float32)), "F pixels, .* round the values"),
    ],
    ids=["colours", "grey", "alpha", "fractions"],
)
def test_the_remedy_for_other_pixels(tmp_path: Path, image: Image.Image, said: str) -> None:
    image.save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match=said):
        read_labels(tmp_path / "a.tif")


def test_colours_as_values(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3, 255], [255, 0, 0, 255]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", colors=True).tolist() == [[0x010203, 0xFF0000]]
    pixels[0, 0, 3] = 9
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"partly transparent, .* without its alpha channel"):
        read_labels(tmp_path / "a.png", colors=True)
    Image.fromarray(np.array([[1]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"the keys of data.label_map are colours"):
        read_labels(tmp_path / "a.png", colors=True)


@pytest.mark.timeout(15)
def test_a_photo_in_place_of_labels_is_refused_in_no_time(tmp_path: Path) -> None:
    """Six million colours, of which the message shows the most frequent."""
    side = 2500
    numbers = np.arange(side * side, dtype=np.uint32)
    numbers[:5] = 0xFF0000
    rgb = np.stack([numbers >> 16, numbers >> 8, numbers], -1).astype(np.uint8)
    file = tmp_path / "x.png"
    Image.fromarray(rgb.reshape(side, side, 3)).save(file, compress_level=0)
    said = r"RGB pixels, .*label_map: \{'#ff0000': \.\.\., '#000005': \.\.\., '#000006'"
    with pytest.raises(DatasetError, match=said):
        read_labels(file)
