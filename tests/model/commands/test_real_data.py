"""The main job on real images, where they are present: see the fixture `real_data`."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers.coco_format import ground_truth_as_panoptic
from helpers.recipes import TINY
from helpers.training import build_trainer

from maskformer.config.load import load_config, parse_config
from maskformer.data import build_dataset
from maskformer.errors import DatasetError
from maskformer.evaluation.panoptic_quality import PanopticQuality

SMALL = {"kind": "semantic", "short_sides": [96], "crop": [96, 96]}


def coco_recipe(folder: Path) -> dict[str, object]:
    split = {"images": "images", "panoptic": "panoptic", "annotations": "panoptic.json"}
    return {
        **TINY,
        "data": {
            "format": "coco_panoptic",
            "root": str(folder / "coco_panoptic_sample"),
            "train": split,
            "val": split,
            "categories": "categories.json",
            "augmentation": {
                "kind": "panoptic",
                "short_sides": [96, 128],
                "max_side": 160,
                "crop_short_sides": [128],
                "crop_range": [64, 96],
            },
            "test_short_side": 128,
            "test_max_side": 256,
        },
        "train": {**TINY["train"], "steps": 3},
    }


def test_the_coco_sample_trains_and_its_ground_truth_scores_one(
    real_data: Path, tmp_path: Path
) -> None:
    config = parse_config(coco_recipe(real_data))
    metrics = build_trainer(config, tmp_path / "run", cpu=True).fit()
    assert math.isfinite(metrics["pq"])
    dataset = build_dataset(config.data, "val")
    quality = PanopticQuality(dataset.info.num_classes, dataset.info.things)
    for index in range(dataset.num_images):
        sample = dataset[index]
        quality.update(ground_truth_as_panoptic(sample), sample)
    assert quality.compute()["pq"] == 1.0


def test_the_camvid_recipe_trains_on_camvid(real_data: Path, tmp_path: Path) -> None:
    overrides = [f"data.root={real_data / 'camvid'}", "train.steps=2", "train.log_every=1"]
    trainer = build_trainer(load_config("camvid", overrides), tmp_path / "run", cpu=True)
    trainer.parts.data.val = torch.utils.data.Subset(trainer.parts.data.val, range(4))  # type: ignore[assignment]
    metrics = trainer.fit()
    assert 0 <= metrics["miou"] <= 1


@pytest.fixture
def few_images(real_data: Path, tmp_path: Path) -> Path:
    """Four training images of CamVid that a test may spoil."""
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for source, suffix in ((split, ".jpg"), (f"{split}annot", ".png")):
            (root / source).mkdir(parents=True)
            for file in sorted((real_data / "camvid" / source).glob(f"*{suffix}"))[:4]:
                shutil.copy(file, root / source)
    return root


def train(root: Path, run: Path, *overrides: str) -> None:
    recipe = load_config("camvid", [f"data.root={root}", "train.steps=2", *overrides])
    build_trainer(recipe, run, cpu=True).fit()


def test_a_broken_image_is_named_before_the_first_step(few_images: Path, tmp_path: Path) -> None:
    broken = min((few_images / "train").iterdir())
    broken.chmod(0o644)
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(DatasetError, match=broken.name):
        train(few_images, tmp_path / "run")


def test_a_wrong_ignore_value_is_explained(few_images: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"11.*ignore|ignore.*11"):
        train(few_images, tmp_path / "run", "data.ignore=[255]")


def test_an_empty_folder_is_named(few_images: Path, tmp_path: Path) -> None:
    shutil.rmtree(few_images / "val")
    (few_images / "val").mkdir()
    with pytest.raises(DatasetError, match="val"):
        train(few_images, tmp_path / "run")
