"""Orientation tags: an image is turned, and its labels lie as it does, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.Image import Transpose

from maskformer import ImageProcessor
from maskformer.config.schema import CocoPanopticConfig, FolderConfig
from maskformer.data import Dataset, Sample, build_dataset, check_dataset
from maskformer.data.image_files.orientation import turn_array
from maskformer.data.image_files.reader import ImageReader
from maskformer.errors import DatasetError
from maskformer.system.writing import write_json

METHODS = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
FORMATS = {".png": {}, ".tif": {}, ".webp": {"lossless": True}, ".jpg": {"quality": 100}}
AMBIGUOUS = [(2, (16, 24)), (3, (16, 24)), (4, (16, 24)), *((tag, (16, 16)) for tag in range(2, 9))]


def stored(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Class 1 in a corner; in no orientation the same."""
    labels = np.zeros(size, np.uint8)
    labels[:8, : size[1] // 2] = 1
    labels[8:, :4] = 1
    return labels


def save(file: Path, pixels: np.ndarray[Any, Any], tag: int | None = None, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if tag is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = tag
    Image.fromarray(pixels).save(file, **options)


def save_pair(
    root: Path,
    tag: int | None,
    size: tuple[int, int] = (16, 24),
    labels: np.ndarray[Any, Any] | None = None,
    label_tag: int | None = None,
    suffix: str = ".png",
) -> None:
    picture = np.repeat(stored(size)[..., None] * np.uint8(255), 3, 2)
    save(root / f"images/a{suffix}", picture, tag, **FORMATS[suffix])
    save(root / "labels/a.png", stored(size) if labels is None else labels, label_tag)


def dataset(root: Path, rule: str | None) -> Dataset:
    split = {"images": "images", "labels": "labels"}
    values = {"root": root, "train": split, "val": split, "classes": ["x", "y"]}
    return build_dataset(FolderConfig.model_validate(values | {"exif_orientation": rule}), "train")


def aligned(sample: Sample) -> bool:
    return torch.equal(sample.image[0] > 127, sample.semantic_map() == 1)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("tag", METHODS)
def test_images_are_turned_or_not(tmp_path: Path, tag: int, suffix: str) -> None:
    save_pair(tmp_path, tag, suffix=suffix)
    file = tmp_path / f"images/a{suffix}"
    method = METHODS[tag]
    raw = Image.fromarray(stored((16, 24)))
    turned = np.array(raw if method is None else raw.transpose(method))
    assert np.array_equal(ImageReader()(file)[0] > 127, turned == 1)
    assert np.array_equal(ImageReader(orientation="ignore")(file)[0] > 127, stored((16, 24)) == 1)
    for rule in (None, "ignore"):
        reader = ImageReader(orientation=rule)
        assert torch.equal(reader(Image.open(file)), reader(file))
    processor = ImageProcessor(None)
    assert torch.equal(processor(file)["pixel_values"], processor(Image.open(file))["pixel_values"])


@pytest.mark.parametrize("tag", METHODS)
def test_arrays_are_turned_as_pillow_turns(tag: int) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image, method = Image.fromarray(pixels), METHODS[tag]
    turned = np.array(image if method is None else image.transpose(method))
    assert np.array_equal(turn_array(pixels, tag), turned)
    assert np.array_equal(turn_array(pixels[..., None], tag)[..., 0], turned)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("tag", "size"), AMBIGUOUS)
def test_where_sizes_say_nothing(
    tmp_path: Path, tag: int, size: tuple[int, int], suffix: str
) -> None:
    save_pair(tmp_path, tag, size, suffix=suffix)
    with pytest.raises(
        DatasetError,
        match=rf"a\{suffix} is to be .*{tag}\), its label file .*a.png to be left as it is, .*"
        "set data.exif_orientation to 'apply' if .*, or to 'ignore' if",
    ):
        check_dataset(dataset(tmp_path, None))
    assert aligned(dataset(tmp_path, "ignore")[0])
    turned = turn_array(stored(size), tag)
    save(tmp_path / "labels/a.png", np.ascontiguousarray(turned))
    assert aligned(dataset(tmp_path, "apply")[0])


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_where_sizes_decide(tmp_path: Path, tag: int) -> None:
    save_pair(tmp_path, tag)  # drawn on the stored pixels
    with pytest.raises(DatasetError, match=r"set data.exif_orientation to 'ignore': the labels"):
        dataset(tmp_path, None)[0]
    assert aligned(dataset(tmp_path, "ignore")[0])
    save_pair(tmp_path, tag, labels=np.ascontiguousarray(turn_array(stored((16, 24)), tag)))
    for rule in (None, "apply"):
        assert aligned(dataset(tmp_path, rule)[0])
    with pytest.raises(DatasetError, match="rotated by 90 degrees"):
        dataset(tmp_path, "ignore")[0]


@pytest.mark.parametrize("tag", range(2, 9))
def test_labels_with_a_tag(tmp_path: Path, tag: int) -> None:
    save_pair(tmp_path, tag, label_tag=tag)
    for rule in (None, "apply", "ignore"):
        assert aligned(dataset(tmp_path, rule)[0])
    save_pair(tmp_path, None, (16, 16), label_tag=tag)  # the other way round
    with pytest.raises(DatasetError, match=r"a.png is to be left as it is, its label file"):
        dataset(tmp_path, None)[0]
    assert aligned(dataset(tmp_path, "ignore")[0])


@pytest.mark.parametrize("tag", [None, 0, 1, 9, 700])
def test_tags_that_turn_nothing(tmp_path: Path, tag: int | None) -> None:
    save_pair(tmp_path, tag)
    for rule in (None, "apply", "ignore"):
        assert aligned(dataset(tmp_path, rule)[0])


def test_panoptic_files(tmp_path: Path) -> None:
    save_pair(tmp_path, 3)
    ids = np.zeros((16, 24, 3), np.uint8)
    ids[..., 0] = stored((16, 24)) + 1
    save(tmp_path / "labels/a.png", ids)
    parts = [{"id": number + 1, "category_id": number, "iscrowd": 0} for number in (0, 1)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 24}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": parts}],
        "categories": [{"id": number, "name": str(number), "isthing": 0} for number in (0, 1)],
    }
    write_json(tmp_path / "a.json", content)
    split = {"images": "images", "panoptic": "labels", "annotations": "a.json"}
    values = {"root": tmp_path, "train": split, "val": split}
    config = CocoPanopticConfig.model_validate(values)
    with pytest.raises(DatasetError, match=r"set data.exif_orientation to 'apply' if"):
        build_dataset(config, "train")[0]
    stays = CocoPanopticConfig.model_validate(values | {"exif_orientation": "ignore"})
    assert aligned(build_dataset(stays, "train")[0])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    pixels = np.repeat(stored((16, 24))[..., None] * np.uint8(255), 3, 2)
    save(tmp_path / "images/a.avif", pixels, 6, quality=100)
    save(tmp_path / "labels/a.png", np.ascontiguousarray(turn_array(stored((16, 24)), 6)))
    image = dataset(tmp_path, None)[0].image
    assert ((image[0] > 127).numpy() == (turn_array(stored((16, 24)), 6) == 1)).mean() > 0.98
