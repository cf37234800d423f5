"""Each family of published recipes on its data set in the official layout: reads, trains two steps,
evaluates with its metric, also by several views, and predicts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.command_line import Run
from helpers.official.layouts import (
    write_ade20k,
    write_ade20k_full,
    write_cityscapes,
    write_coco_panoptic,
    write_coco_stuff_10k,
    write_mapillary,
)
from PIL import Image

from maskformer.config.load import load_config
from maskformer.data import build_dataset
from maskformer.data.preparation.ade20k_full import prepare_ade20k_full
from maskformer.data.preparation.ade20k_panoptic import prepare_ade20k_panoptic
from maskformer.errors import DatasetError

SMALL = [
    "model.backbone.name=test_resnet",
    "model.backbone.pretrained=false",
    "model.backbone.frozen_norm=false",
    "model.backbone.multi_grid=null",
    "model.pixel_decoder={channels: 16, mask_channels: 16, groups: 4}",
    "model.decoder={queries: 8, channels: 16, heads: 2, feedforward: 32, layers: 2}",
    "train.steps=2",
    "train.batch_size=2",
    "train.workers=0",
    "train.evaluate_every=100",
    "data.test_short_side=32",
    "data.test_max_side=64",
    "eval.pictures=0",
]
VIEWS = ["eval.tta.short_sides=[32, 48]"]
SEMANTIC = [
    "data.augmentation.short_sides=[32, 40]",
    "data.augmentation.max_side=64",
    "data.augmentation.crop=[32, 32]",
]
ENCODER = ["model.pixel_decoder.encoder_layers=1"]
PANOPTIC = [
    "data.augmentation.short_sides=[32, 40]",
    "data.augmentation.max_side=64",
    "data.augmentation.crop_short_sides=[40]",
    "data.augmentation.crop_range=[24, 32]",
    "model.num_classes=null",
    *VIEWS,
]


def full(root: Path) -> None:
    write_ade20k_full(root)
    prepare_ade20k_full(root)


def scenes(root: Path) -> None:
    write_ade20k(root)
    prepare_ade20k_panoptic(root)


class Family(NamedTuple):
    """How a recipe is tried.

    Attributes:
        write: makes its data set.
        values: what makes it small.
        classes: of the first training image.
        image: one of validation.
        metric: that decides.
    """

    write: Callable[[Path], None]
    values: list[str]
    classes: list[int]
    image: str
    metric: str = "miou"


FAMILIES = {
    "cityscapes/r101": Family(
        write_cityscapes,
        [*SEMANTIC, *VIEWS],
        [0, 1, 2, 8, 10, 11, 13, 18],
        "leftImg8bit/val/frankfurt/frankfurt_000001_083852_leftImg8bit.png",
    ),
    "mapillary/r50": Family(
        write_mapillary,
        [*SEMANTIC, "eval.tta.scales=[1, 1.5]"],
        [0, 13, 19, 55, 64],
        "validation/images/a0.jpg",
    ),
    "coco_stuff_10k/r101c": Family(
        write_coco_stuff_10k,
        [*SEMANTIC, *VIEWS],
        [0, 11, 79, 80, 170],
        "images/COCO_train2014_000000000064.jpg",
    ),
    "ade20k/per_pixel_r50": Family(
        write_ade20k,
        [*SEMANTIC, *VIEWS],
        [0, 2, 7, 12, 149],
        "images/validation/ADE_val_00000001.jpg",
    ),
    "ade20k_full/per_pixel_plus_r50": Family(
        full,
        [*SEMANTIC, *VIEWS],
        [0, 1, 2],
        "images_detectron2/validation/ADE_val_00000123.jpg",
    ),
    "ade20k_panoptic/r50_6enc": Family(
        scenes,
        [*SEMANTIC, *VIEWS, *ENCODER],
        [0, 2, 7, 12, 149],
        "images/validation/ADE_val_00000001.jpg",
        "pq",
    ),
    "coco_panoptic/r50_6enc": Family(
        write_coco_panoptic,
        [*PANOPTIC, *ENCODER],
        [0, 1, 2, 3],
        "val2017/000000000139.jpg",
        "pq",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_on_its_official_layout(name: str, tmp_path: Path, run: Run) -> None:
    family, data, output = FAMILIES[name], tmp_path / "data", tmp_path / "run"
    family.write(data)
    values = [f"data.root={data}", *SMALL, *family.values]
    dataset = build_dataset(load_config(name, values).data, "train")
    assert [k for k in dataset[0].semantic_map().unique().tolist() if k >= 0] == family.classes

    code, _, error = run("train", "--cpu", "--config", name, "--output", output, *values)
    assert code == 0, error
    code, out, error = run("evaluate", "--checkpoint", output, "--tta", "--output", tmp_path / "e")
    assert code == 0, error
    figures = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert 0 <= figures[family.metric] <= 1
    assert family.metric in out

    image, predicted = data / family.image, tmp_path / "p"
    code, _, error = run("predict", image, "--checkpoint", output, "--out", predicted)
    assert code == 0, error
    kind = "panoptic" if family.metric == "pq" else "classes"
    (found,) = (predicted / kind).rglob("*.png")
    with Image.open(found) as result, Image.open(image) as original:
        assert result.size == original.size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("cityscapes/r101", "gtFine/train/zurich/*labelIds.png", "cut", "label file"),
        ("cityscapes/r101", "leftImg8bit/train/aachen/*.png", "cut", "image file"),
        ("cityscapes/r101", "gtFine/train/aachen/*labelIds.png", "remove", "have no label file"),
        ("mapillary/r50", "training/labels/-*.png", "cut", "label file"),
        ("mapillary/r50", "training/labels/-*.png", "value", "the value 66"),
        ("coco_stuff_10k/r50", "annotations/*092.mat", "cut", "label file"),
        ("coco_stuff_10k/r50", "images/*077.jpg", "remove", "000000000077, are not in images"),
        ("coco_stuff_10k/r50", "imageLists/train.txt", "remove", "there is no file"),
        ("ade20k_full/r50", "annotations_detectron2/training/*09.tif", "cut", "label file"),
        ("ade20k_panoptic/r50_6enc", "ade20k_panoptic_train/*1.png", "cut", "panoptic file"),
        ("coco_panoptic/r50_6enc", "annotations/panoptic_train2017.json", "cut", "JSON"),
    ],
)
def test_broken_files_are_named(
    name: str, file: str, damage: str, message: str, tmp_path: Path
) -> None:
    write = next(
        family[0]
        for known, family in FAMILIES.items()
        if known.startswith(name.split("/")[0] + "/")
    )
    write(tmp_path)
    (broken,) = tmp_path.glob(file)
    if damage == "remove":
        broken.unlink()
    elif damage == "cut":
        broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    else:
        Image.fromarray(np.full((39, 80), 66, np.uint8)).save(broken)
    config = load_config(name, [f"data.root={tmp_path}", "model.num_classes=null"])
    with pytest.raises(DatasetError, match=message) as caught:
        list(build_dataset(config.data, "train"))
    if damage != "remove":
        assert broken.name in str(caught.value)


def test_both_numberings_of_coco_stuff_are_the_same_classes(tmp_path: Path) -> None:
    """Version 1.0 counts the classes from 2 on; 1 is unlabelled."""
    from scipy.io import loadmat, savemat

    write_coco_stuff_10k(tmp_path)
    values = [f"data.root={tmp_path}"]
    newer = build_dataset(load_config("coco_stuff_10k/r50", values).data, "train")[0]
    for file in (tmp_path / "annotations").iterdir():
        labels = loadmat(file)["S"]
        renumbered = np.ones_like(labels)
        for old, new in {1: 2, 13: 13, 90: 81, 92: 82, 182: 172}.items():
            renumbered[labels == old] = new
        savemat(file, {"S": renumbered})
    values += ["data.label_map=null", "data.label_offset=2", "data.ignore=1"]
    older = build_dataset(load_config("coco_stuff_10k/r50", values).data, "train")[0]
    assert older.semantic_map().equal(newer.semantic_map())
