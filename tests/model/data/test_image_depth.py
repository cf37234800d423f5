"""Images of more or other than 8 bits: read by their depth, by a range, or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.hostile.images import png
from PIL import Image

from maskformer import ImageProcessor
from maskformer.config.load import parse_config
from maskformer.data.image_files.depth import ValueScale
from maskformer.data.image_files.reader import ImageReader
from maskformer.errors import ConfigError, DatasetError

RAMP = np.linspace(0, 1, 64 * 80, dtype=np.float32).reshape(64, 80)


def save(root: Path, values: np.ndarray[Any, Any], suffix: str = ".tif") -> Path:
    Image.fromarray(values).save(root / f"x{suffix}")
    return root / f"x{suffix}"


def deep_png(root: Path, values: np.ndarray[Any, Any]) -> Path:
    """A PNG of 16 bits with the bands of `[H, W, C]`, which Pillow does not write."""
    height, width, bands = values.shape
    rows = values.reshape(height, -1).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    (root / "deep.png").write_bytes(png(width, height, 16, {2: 4, 3: 2, 4: 6}[bands], body))
    return root / "deep.png"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (RAMP, r"float32 values from 0 to 1, .* 2 of 256 levels; .* such as \[0, 1\]"),
        (RAMP * 4095, r"float32 values from 0 to 4095; .*such as \[0, 4095\]"),
        (RAMP - 0.5, r"float32 values from -0.5 to 0.5; .* such as \[-0.5, 0.5\]"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "from 0 to 0.[45].* some that are not finite; set"),
        (np.full((4, 4), np.nan, np.float32), r"from nan to nan and some .*such as \[0, 1\]"),
        ((RAMP * 255).astype(np.int32), r"int32 values from 0 to 255, .* such as \[0, 255\]"),
        ((RAMP * 1e6).astype(np.int32), "int32 values from 0 to 1e"),
        ((RAMP * 4000 - 1000).astype(np.int32), r"from -1000 to 3000; .*such as \[-1000, 3000\]"),
        ((RAMP * 4095).astype(np.uint16), r"uint16 values from 0 to 4095, .* 16 of 256 .*4095\]"),
        ((RAMP * 1023).astype(np.uint16), r"from 0 to 1023, .* 4 of 256 levels; .*\[0, 1023\]"),
        ((RAMP * 16000).astype(np.uint16), r"such as \[0, 16383\].*value_range \[0, 65535\] uses"),
        ((RAMP * 2000 + 29000).astype(np.uint16), r"8 of 256 .* such as \[29000, 31000\]"),
    ],
)  # fmt: skip
def test_refused_with_the_range(tmp_path: Path, values: np.ndarray[Any, Any], said: str) -> None:
    file = save(tmp_path, values)
    with pytest.raises(DatasetError, match=rf"x\.tif has .*{said}"):
        ImageReader()(file)
    with pytest.raises(DatasetError, match=r"data\.value_range"):
        ImageReader()(Image.open(file))


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        ((RAMP * 65535).astype(np.uint16), ".png"),
        ((RAMP * 65535).astype(np.uint16), ".tif"),
        ((RAMP * 65535).astype(np.uint16), ".pgm"),
        ((RAMP * 65535).astype(np.int32), ".tif"),
        (RAMP * 255, ".tif"),
        ((RAMP * 255).astype(np.uint8), ".png"),
        ((RAMP * 255).astype(np.uint8), ".pgm"),
    ],
)  # fmt: skip
def test_read_by_depth(tmp_path: Path, values: np.ndarray[Any, Any], suffix: str) -> None:
    file = save(tmp_path, values, suffix)
    image = ImageReader()(file)
    assert image.shape == (3, 64, 80)
    assert len(image.unique()) == 256
    assert (image[0].numpy().astype(int) - np.round(RAMP * 255)).__abs__().max() <= 1
    assert torch.equal(ImageReader()(Image.open(file)), image)


@pytest.mark.parametrize("top", [1, 1023, 4095, 70_000])
def test_a_range(tmp_path: Path, top: int) -> None:
    kind = np.float32 if top == 1 else np.int32
    file = save(tmp_path, (RAMP * top).astype(kind))
    image = ImageReader(scale=ValueScale((0, top)))(file)
    assert (image[0].numpy().astype(int) - np.round(RAMP * 255)).__abs__().max() <= 1
    clipped = ImageReader(scale=ValueScale((0.25 * top, 0.75 * top)))(file)
    assert (clipped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert (clipped == 255).float().mean() == pytest.approx(0.25, abs=0.01)


def test_percentiles_of_each_band(tmp_path: Path) -> None:
    values = np.stack([RAMP * 100, RAMP * 9000 + 500, -RAMP], axis=-1).astype(np.float32)
    values[0, 0] = 1e9
    values[0, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    image = ImageReader(scale=ValueScale(percentiles=(2, 98)))(tmp_path / "x.npy")
    for band in image:
        assert (band == 0).float().mean() == pytest.approx(0.02, abs=0.01)
        assert (band == 255).float().mean() == pytest.approx(0.02, abs=0.01)
    assert image[:, 0, 1].tolist() == [0, 0, 0]
    np.save(tmp_path / "x.npy", np.full((4, 5), 7.0))
    assert not ImageReader(scale=ValueScale(percentiles=(2, 98)))(tmp_path / "x.npy").any()


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_png_of_16_bits(tmp_path: Path, bands: int) -> None:
    values = np.stack([RAMP, 1 - RAMP, RAMP, RAMP][:bands], axis=-1) * 65535
    file = deep_png(tmp_path, values)
    image = ImageReader()(file)
    first = (values[..., 0].astype(int) >> 8).astype(np.uint8)
    assert np.array_equal(image[0], first)
    assert torch.equal(ImageReader()(Image.open(file)), image)
    file = deep_png(tmp_path, values / 16)
    with pytest.raises(DatasetError, match=r"uint16 values from 0 to 3840, .* such as \[0, 4095\]"):
        ImageReader()(file)
    with pytest.raises(DatasetError, match=r"data\.value_range"):
        ImageReader()(Image.open(file))
    with file.open("rb") as stream, pytest.raises(DatasetError, match="give the file instead"):
        ImageReader(scale=ValueScale((0, 4095)))(Image.open(stream))


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_a_range_of_colour_png_of_16_bits(tmp_path: Path, bands: int) -> None:
    pytest.importorskip("imagecodecs", reason="needs the extra 'tiff'")
    values = np.stack([RAMP, 1 - RAMP, RAMP, RAMP][:bands], axis=-1) * 4095
    file = deep_png(tmp_path, values)
    stretched = ImageReader(scale=ValueScale((0, 4095)))
    levels = np.round(values[..., 0] / 4095 * 255)
    assert np.abs(stretched(file)[0].numpy().astype(int) - levels).max() <= 1
    assert torch.equal(stretched(Image.open(file)), stretched(file))
    one = ImageReader((bands,), ValueScale((0, 4095)))(file)
    assert np.abs(one[0].numpy().astype(int) - np.round(values[..., -1] / 4095 * 255)).max() <= 1


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    file = deep_png(tmp_path, np.stack([RAMP * 4095] * 3, axis=-1))
    with pytest.raises(DatasetError, match=r"need imagecodecs: .*pip install 'mfkernels\[tiff\]'"):
        ImageReader(scale=ValueScale((0, 4095)))(file)


def test_twelve_bits_that_a_tiff_states(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 2048, 1024]], np.uint32)
    bits = "".join(f"{value:012b}" for value in values[0])
    data = int(bits, 2).to_bytes(6, "big")
    tags = [
        (256, 4),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 6),
    ]
    header = b"II*\0" + (14).to_bytes(4, "little") + data
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x04\0\x01\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags
    )
    content = header + len(tags).to_bytes(2, "little") + entries + bytes(4)
    (tmp_path / "x.tif").write_bytes(content)
    assert ImageReader()(tmp_path / "x.tif")[0, 0].tolist() == [0, 255, 128, 64]


def test_the_processor_reads_as_training_does(tmp_path: Path) -> None:
    file = save(tmp_path, (RAMP * 4095).astype(np.uint16), ".png")
    recipe = {"data": {"format": "shapes", "value_range": [0, 4095], "test_short_side": None}}
    processor = ImageProcessor.from_config(parse_config(recipe))
    both = processor([file, Image.open(file)])["pixel_values"]
    assert torch.equal(*both)
    with pytest.raises(DatasetError, match="value_range"):
        ImageProcessor(None)(Image.open(file))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"value_range": [5, 5]}, r"value_range must be \[low, high\], got \[5"),
        ({"percentiles": [98, 2]}, r"percentiles must be \[low, high\]"),
        ({"percentiles": [2, 101]}, "percentiles"),
        ({"value_range": [0, 1], "percentiles": [2, 98]}, "both given, expected one of them"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"exif_orientation": "turn"}, "exif_orientation"),
    ],
)  # fmt: skip
def test_settings_are_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"data": {"format": "shapes", **values}})


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_size_limit(tmp_path: Path) -> None:
    file = save(tmp_path, np.zeros((40, 50), np.uint8), ".png")
    said = r"x\.png has 50x40 = 2000 pixels, more than data\.max_pixels: 1999 allows; .* raise"
    with pytest.raises(DatasetError, match=said):
        ImageReader(max_pixels=1999)(file)
    assert ImageReader(max_pixels=2000)(file).shape == (3, 40, 50)
    file.write_bytes(png(20_000, 10_000))
    with pytest.raises(
        DatasetError, match=r"200000000 pixels, more than data\.max_pixels: 178956970"
    ):
        ImageReader()(file)
    np.save(tmp_path / "x.npy", np.zeros((40, 50), np.uint8))
    with pytest.raises(DatasetError, match=r"2000 pixels, more than data\.max_pixels: 9"):
        ImageReader(max_pixels=9)(tmp_path / "x.npy")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pillows", [500, 1500, 2500])
def test_a_raised_size_limit_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillows: int
) -> None:
    """Without a warning of what is allowed, where Pillow would refuse it or warn of an attack."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    file = save(tmp_path, np.zeros((40, 50), np.uint8), ".tif")
    assert ImageReader(max_pixels=2000)(file).shape == (3, 40, 50)
    assert max(pillows, 2000) == Image.MAX_IMAGE_PIXELS
