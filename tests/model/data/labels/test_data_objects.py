"""Objects that a second file numbers, as in VOC; things that nothing tells apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.label_folders import columns, folder_config, write_pair
from helpers.model_cases import tiny_model
from helpers.recipes import TINY
from helpers.training import build_trainer
from PIL import Image

from maskformer.commands import evaluate
from maskformer.config.load import parse_config
from maskformer.config.schema import EvalConfig
from maskformer.data import build_dataset, check_dataset
from maskformer.data.inspection.checks import check_objects
from maskformer.errors import ConfigError, DatasetError

SPLIT = {"images": "images", "labels": "labels", "objects": "objects"}
CLASSES = ["_background_", "cat", "dog"]
BOTH = {"train": SPLIT, "val": SPLIT, "classes": CLASSES}


def write(root: Path, labels: tuple[int, ...], objects: tuple[int, ...]) -> None:
    write_pair(root, "a", columns(*labels))
    write_pair(root, "a", columns(*objects), folder="objects")


def test_objects(tmp_path: Path) -> None:
    write(tmp_path, (0, 1, 1, 2, 2, 255), (0, 7, 2, 2, 2, 255))
    data = build_dataset(folder_config(tmp_path, **BOTH), "train")
    assert data.info.things == {1, 2}
    sample = data[0]
    assert sample.labels.tolist() == [0, 1, 1, 2]
    assert sample.segments[0].tolist() == [0, 2, 1, 3, 3, -1]
    assert sample.segments.dtype == sample.segments.int().dtype
    assert check_dataset(data) == []
    assert tmp_path / "objects" / "a.png" in data.files[0]


def test_things_of_one_name(tmp_path: Path) -> None:
    write(tmp_path, (0, 1, 2), (0, 1, 2))
    names = ["_background_", "cat", "cat"]
    config = folder_config(tmp_path, train=SPLIT, val=SPLIT, classes=names, things=["cat"])
    assert build_dataset(config, "train").info.things == {1, 2}


@pytest.mark.parametrize("number", [0, 3, 255])
def test_an_image_of_void_alone(tmp_path: Path, number: int) -> None:
    write(tmp_path, (255, 255), (number, number))
    data = build_dataset(folder_config(tmp_path, **BOTH), "train")
    sample = data[0]
    assert sample.labels.tolist() == []
    assert sample.segments.unique().tolist() == [-1]


def test_things_of_the_recipe(tmp_path: Path) -> None:
    write(tmp_path, (0, 1, 1, 2, 2, 255), (0, 7, 2, 0, 255, 3))
    data = build_dataset(folder_config(tmp_path, **BOTH, things="cat"), "train")
    assert data[0].labels.tolist() == [0, 1, 1, 2]
    assert data[0].segments[0].tolist() == [0, 2, 1, 3, 3, -1]


@pytest.mark.parametrize("number", [0, 255])
def test_things_without_a_number(tmp_path: Path, number: int) -> None:
    write(tmp_path, (0, 1, 1), (0, 1, number))
    data = build_dataset(folder_config(tmp_path, **BOTH), "train")
    with pytest.raises(DatasetError, match=r"objects/a\.png gives no object number to 2 pixels of"):
        check_dataset(data)


def test_files_of_objects_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path, (0, 1, 1), (0, 1, 1))
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "objects" / "a.png")
    data = build_dataset(folder_config(tmp_path, **BOTH), "train")
    with pytest.raises(DatasetError, match=r"objects/a\.png is 3x3 pixels, its image"):
        check_dataset(data)
    (tmp_path / "objects" / "a.png").rename(tmp_path / "objects" / "b.png")
    with pytest.raises(DatasetError, match=r"1 of 1 images have no object file"):
        build_dataset(folder_config(tmp_path, **BOTH), "train")
    (tmp_path / "objects" / "b.png").unlink()
    (tmp_path / "objects").rmdir()
    with pytest.raises(DatasetError, match=r"train objects: there is no folder .*objects; set"):
        build_dataset(folder_config(tmp_path, **BOTH), "train")


@pytest.mark.parametrize(
    ("settings", "panoptic", "is_refused"),
    [
        ({"things": ["cat"]}, True, True),
        ({"things": ["cat"]}, False, False),
        ({}, True, False),
        ({"things": ["cat"], "train": SPLIT}, True, True),
        ({"things": ["cat"], "train": SPLIT, "val": SPLIT}, True, False),
        ({"things": ["cat"], "train": SPLIT, "val": 0.1}, True, False),
    ],
)
def test_things_that_nothing_tells_apart(
    tmp_path: Path, settings: dict[str, Any], panoptic: bool, is_refused: bool
) -> None:
    data = folder_config(tmp_path, classes=CLASSES, **settings)
    evaluation = EvalConfig(panoptic=panoptic)
    if not is_refused:
        check_objects(data, evaluation)
        return
    with pytest.raises(ConfigError, match=r"data.things names cat, .*set objects in data.train"):
        check_objects(data, evaluation)


def test_training_and_evaluation_refuse_them(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", columns(0, 1))
    data = folder_config(tmp_path, classes=CLASSES, things="cat")
    recipe = {**TINY, "data": data, "eval": {"panoptic": True}}
    with pytest.raises(ConfigError, match=r"data.things names cat"):
        build_trainer(parse_config(recipe), tmp_path / "run", cpu=True)
    model = tiny_model(num_classes=3)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"data.things names cat"):
        evaluate.run(
            tmp_path / "model",
            parse_config(recipe),
            [],
            None,
            save_maps=False,
            tta=False,
            backend="auto",
            device="cpu",
        )


def test_the_voc_sample(real_data: Path) -> None:
    root = real_data / "labelme_sample" / "instance_segmentation" / "data_dataset_voc"
    split = {"images": "JPEGImages", "labels": "SegmentationClass", "objects": "SegmentationObject"}
    config = folder_config(root, train=split, val=split, classes="class_names.txt")
    data = build_dataset(config, "val")
    assert data.info.num_classes == 21
    assert [len(sample.labels) for sample in data] == [4, 7, 4]
    (warning,) = check_dataset(data)
    assert "14 of 21 classes never occur" in warning
