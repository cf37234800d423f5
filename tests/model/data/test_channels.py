"""Images of one, two, four and more bands: which are taken, and what is refused."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer import ImageProcessor
from maskformer.config.load import load_config, parse_config, to_yaml
from maskformer.config.schema import Config
from maskformer.data import EvalTransform, Normalize, build_dataset
from maskformer.data.color_jitter import distort_color
from maskformer.data.image_files.depth import ValueScale
from maskformer.data.image_files.reader import ImageReader
from maskformer.errors import ConfigError, DatasetError
from maskformer.output.pictures import as_rgb

CHANNELS = "data.channels: expected a number of channels, such as 4, or a list of bands"
RNG = np.random.default_rng(0)


def bands(count: int, kind: type = np.uint8) -> np.ndarray[Any, Any]:
    top = 256 if kind is np.uint8 else 60_000
    return RNG.integers(0, top, (20, 30, count)).astype(kind)


def save(root: Path, mode: str, suffix: str) -> tuple[Path, np.ndarray[Any, Any]]:
    values = bands(len(Image.new(mode, (1, 1)).getbands()))
    file = root / f"{mode}{suffix}"
    Image.fromarray(values.squeeze(), mode).save(file)
    return file, values


def refused(file: Path, said: str, **settings: Any) -> None:
    with pytest.raises(DatasetError, match=said):
        ImageReader(**settings)(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the mode that is given to Pillow
@pytest.mark.parametrize(
    ("mode", "suffix", "count"),
    [
        ("L", ".png", 1), ("LA", ".png", 2), ("RGB", ".png", 3), ("RGBA", ".png", 4),
        ("RGBA", ".tif", 4), ("CMYK", ".tif", 4), ("L", ".tif", 1), ("RGBA", ".webp", 4),
    ],
)  # fmt: skip
def test_modes_of_pillow(tmp_path: Path, mode: str, suffix: str, count: int) -> None:
    file, values = save(tmp_path, mode, suffix)
    exact = suffix != ".webp"
    image = ImageReader(count)(file)
    assert image.shape == (count, 20, 30)
    assert torch.equal(image, ImageReader(count)(Image.open(file)))
    if exact:
        assert np.array_equal(image.permute(1, 2, 0), values)
        picked = ImageReader((count, 1))(file)
        assert np.array_equal(picked.permute(1, 2, 0), values[..., [count - 1, 0]])
    assert ImageReader()(file).shape == (3, 20, 30)  # RGB, as ever
    refused(file, rf"has {count} channels?, which does not match data.channels: 7; set", channels=7)
    refused(file, rf"data.channels: \[1, {count + 1}\]", channels=(1, count + 1))


@pytest.mark.parametrize("count", [1, 2, 4, 13])
def test_numpy_files(tmp_path: Path, count: int) -> None:
    values = bands(count, np.uint16)
    file = tmp_path / "x.npy"
    for stored in (values, np.moveaxis(values, 2, 0), *([values[..., 0]] if count == 1 else [])):
        np.save(file, stored)
        assert np.array_equal(ImageReader(count)(file).permute(1, 2, 0), values >> 8)
    np.save(file, bands(count))
    assert ImageReader((count,))(file).shape == (1, 20, 30)
    if count > 1:
        refused(
            file, rf"has {count} channels, which does not match data.channels: 3; set it to {count}"
        )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(5), r"it is an array \[5\] of float64, expected \[H, W\]"),
        (np.zeros((2, 3, 4, 5)), r"array \[2, 3, 4, 5\]"),
        (np.zeros((4, 5), complex), "complex128"),
        (np.array([["a", "b"]]), "of <U1"),
        (np.array([[{}]]), "of object"),
        (np.zeros((2000, 3000, 1500), np.bool_)[:0], "it has"),
    ],
)
def test_numpy_files_that_are_no_images(
    tmp_path: Path, values: np.ndarray[Any, Any], said: str
) -> None:
    np.save(tmp_path / "x.npy", values)
    refused(tmp_path / "x.npy", f"x.npy cannot be read .*{said}")
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "x.npy", "x.npy cannot be read")


def test_a_numpy_file_that_promises_too_much(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((10, 10), np.uint8))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content.replace(b"(10, 10)", b"(99, 99)"))
    refused(tmp_path / "x.npy", "cannot be read")


def write_tiff(file: Path, values: np.ndarray[Any, Any], **options: Any) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs the extra 'tiff'")
    tifffile.imwrite(file, values, **options)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (3, {"photometric": "rgb"}),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (4, {"photometric": "minisblack", "planarconfig": "contig"}),
        (13, {"photometric": "minisblack", "planarconfig": "contig"}),
        (13, {"photometric": "minisblack", "planarconfig": "separate"}),
        (5, {"photometric": "minisblack", "pages": True}),
    ],
)
def test_tiff(tmp_path: Path, count: int, options: dict[str, Any], compression: str | None) -> None:
    values = bands(count, np.uint16)
    options = dict(options)
    apart = options.pop("pages", False) or options.get("planarconfig") == "separate"
    stored = np.ascontiguousarray(np.moveaxis(values, 2, 0)) if apart else values
    write_tiff(tmp_path / "x.tif", stored, compression=compression, **options)
    assert np.array_equal(ImageReader(count)(tmp_path / "x.tif").permute(1, 2, 0), values >> 8)
    picked = ImageReader((3, 1), ValueScale((0, 65535)))(tmp_path / "x.tif")
    levels = np.round(values[..., [2, 0]] / 65535 * 255)
    assert np.abs(picked.permute(1, 2, 0).numpy() - levels).max() <= 1


def test_bands_of_a_tiff_are_not_dropped(tmp_path: Path) -> None:
    """Pillow reads such files as RGB."""
    write_tiff(tmp_path / "x.tif", bands(4), photometric="rgb", extrasamples=["unspecified"])
    refused(tmp_path / "x.tif", r"has 4 channels, expected what data\.channels: 3 says")
    values = bands(4)
    write_tiff(tmp_path / "x.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(ImageReader()(tmp_path / "x.tif").permute(1, 2, 0), values[..., :3])


@pytest.mark.parametrize("scale", [ValueScale(), ValueScale((0, 1)), ValueScale(None, (2, 98))])
def test_a_tiff_of_complex_numbers(tmp_path: Path, scale: ValueScale) -> None:
    write_tiff(tmp_path / "x.tif", bands(1)[..., 0].astype(np.complex64))
    reader = ImageReader(scale=scale)
    for read in (reader, reader.read_size):
        with pytest.raises(DatasetError, match=r"x\.tif .* \(it has values of complex64"):
            read(tmp_path / "x.tif")


def test_orientation_of_deep_tiffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = bands(5, np.uint16)
    tag = (274, "H", 1, 6, True)
    write_tiff(
        tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig", extratags=[tag]
    )
    turned = np.rot90(values >> 8, -1)
    assert np.array_equal(ImageReader(5)(tmp_path / "x.tif").permute(1, 2, 0), turned)
    monkeypatch.setattr("tifffile.TiffPage.asarray", None)
    assert ImageReader(5).read_size(tmp_path / "x.tif") == turned.shape[:2]
    monkeypatch.undo()
    stays = ImageReader(5, orientation="ignore")(tmp_path / "x.tif")
    assert np.array_equal(stays.permute(1, 2, 0), values >> 8)


def test_without_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, four = bands(3, np.uint16), bands(4, np.uint16)
    write_tiff(tmp_path / "rgb.tif", rgb, photometric="rgb")
    write_tiff(tmp_path / "four.tif", four, photometric="minisblack", planarconfig="contig")
    with_it = ImageReader()(tmp_path / "rgb.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert torch.equal(ImageReader()(tmp_path / "rgb.tif"), with_it)
    for name, reader in (
        ("rgb", ImageReader(scale=ValueScale((0, 4095)))),
        ("four", ImageReader(4)),
    ):
        with pytest.raises(DatasetError, match=r"tifffile: .*pip install 'mfkernels\[tiff\]'"):
            reader(tmp_path / f"{name}.tif")


def test_damaged_tiff(tmp_path: Path) -> None:
    write_tiff(
        tmp_path / "x.tif", bands(5, np.uint16), photometric="minisblack", planarconfig="contig"
    )
    content = (tmp_path / "x.tif").read_bytes()
    for size in (6, 60, 200, len(content) // 2):
        (tmp_path / "x.tif").write_bytes(content[:size])
        refused(tmp_path / "x.tif", r"x\.tif cannot be read", channels=5)


def recipe(**data: Any) -> Config:
    return parse_config({"data": {"format": "shapes", **data}})


def test_the_model_takes_what_the_data_gives(tmp_path: Path) -> None:
    assert recipe().model.num_channels == 3
    config = recipe(channels=4)
    assert config.model.pixel_mean == config.model.pixel_std == (127.5,) * 4
    assert recipe(channels=[4, 3, 2]).model.pixel_mean[0] == 123.675  # shown as RGB
    assert recipe(channels=[8]).model.num_channels == 1
    (tmp_path / "r.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "r.yaml") == config
    assert load_config("quickstart", ["data.channels=[1, 2]"]).model.num_channels == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": {"channels": 0}}, CHANNELS),
        ({"data": {"channels": []}}, CHANNELS),
        ({"data": {"channels": [0, 1]}}, CHANNELS),
        ({"data": {"channels": "rgb"}}, CHANNELS + ".* got 'rgb'"),
        ({"data": {"channels": True}}, CHANNELS),
        ({"data": {"channels": 2000}}, CHANNELS),
        (
            {"data": {"channels": 4}, "model": {"pixel_mean": [1, 2, 3], "pixel_std": [1, 2, 3]}},
            "images of 4 channels, but model.pixel_mean and model.pixel_std have 3 values: give 4",
        ),
        ({"model": {"pixel_mean": [1, 2]}}, "pixel_mean has 2 values and pixel_std 3"),
    ],
)
def test_what_does_not_fit(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(values | {"data": {"format": "shapes", **values.get("data", {})}})


def test_shapes_are_rgb() -> None:
    with pytest.raises(DatasetError, match=r"data\.channels is 4, but data\.format: shapes draws"):
        build_dataset(recipe(channels=4).data, "train")


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_resizing_treats_all_bands_alike(count: int) -> None:
    image = torch.from_numpy(bands(count)).permute(2, 0, 1)
    resized = EvalTransform(12)(image)
    for band, alone in zip(resized, image, strict=True):
        expected = Image.fromarray(alone.numpy()).resize((18, 12), Image.Resampling.BILINEAR)
        assert np.array_equal(band, np.array(expected))


def test_the_processor(tmp_path: Path) -> None:
    processor = ImageProcessor(
        16, 64, Normalize((10.0,) * 5, (2.0,) * 5), ImageReader(5, ValueScale((0, 60_000)))
    )
    np.save(tmp_path / "x.npy", bands(5, np.uint16))
    values = processor(tmp_path / "x.npy")["pixel_values"]
    assert values.shape == (1, 5, 32, 32)
    assert processor(bands(5))["pixel_values"].shape == (1, 5, 32, 32)
    with pytest.raises(ValueError, match=r"must be \[H, W, 5\] uint8, got \[20, 30, 3\]"):
        processor(bands(3))
    with pytest.raises(ValueError, match=r"normalize\.mean must be 4 numbers, one per channel"):
        ImageProcessor(reader=ImageReader(4))
    processor.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == processor


def test_colours_are_distorted_where_there_are_any() -> None:
    image = torch.from_numpy(bands(5)).permute(2, 0, 1)
    seen = [distort_color(image, random.Random(seed)) for seed in range(20)]
    assert {result.shape for result in seen} == {image.shape}
    assert any(not torch.equal(result, image) for result in seen)
    # Brightness and contrast keep the order of levels; saturation and hue would not.
    for result in seen:
        first, second = image[0].int(), result[0].int()
        assert ((first[:, 1:] < first[:, :-1]) <= (second[:, 1:] <= second[:, :-1])).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_pictures_show_the_first_bands(count: int) -> None:
    image = torch.from_numpy(bands(count)).permute(2, 0, 1)
    shown = as_rgb(image)
    assert shown.shape == (3, 20, 30)
    assert torch.equal(shown[0], image[0])
    assert torch.equal(shown[2], image[2 if count >= 3 else 0])
