"""Category IoU and iIoU, against the definition of the official scripts written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official.layouts import ODD, patches, save, write_cityscapes
from numpy.typing import NDArray

from maskformer.config.load import load_config, parse_config
from maskformer.config.schema import Config
from maskformer.data import build_dataset
from maskformer.errors import ConfigError, DatasetError
from maskformer.evaluation.cityscapes_quality import CLASSES, CityscapesQuality, instance_file
from maskformer.evaluation.measures import Measures, check_measures
from maskformer.inference.prediction import Prediction

CPU = torch.device("cpu")
NAMES = tuple(CLASSES)
Map = NDArray[np.int64]


def labels_of(classes: Map) -> Map:
    """Label ids of classes; 0 for void, which Cityscapes ignores."""
    return np.array([0, *(CLASSES[name].label_id for name in NAMES)])[classes + 1]


def by_hand(images: list[tuple[Map, Map, Map]]) -> dict[str, float]:
    """The official definition, label by label, of (prediction, truth, instances)."""
    evaluated = {each.label_id: name for name, each in CLASSES.items()}
    scores = {}
    groups = {name: [name] for name in NAMES}
    for name in NAMES:
        groups.setdefault(f"category {CLASSES[name].category}", []).append(name)
    for group, members in groups.items():
        ids = [CLASSES[name].label_id for name in members]
        hits = missed = wrong = weighted_hits = weighted_missed = 0.0
        for prediction, truth, instances in images:
            found, there = np.isin(labels_of(prediction), ids), np.isin(labels_of(truth), ids)
            ignored = ~np.isin(labels_of(truth), [*evaluated])
            hits += (found & there).sum()
            missed += (~found & there).sum()
            wrong += (found & ~there & ~ignored).sum()
            for number in np.unique(instances[instances > 1000]):
                name = evaluated.get(number // 1000, "")
                if name in members:
                    mask = instances == number
                    weight = (CLASSES[name].instance_size or 0) / mask.sum()
                    weighted_hits += weight * (found & mask).sum()
                    weighted_missed += weight * (~found & mask).sum()
        total = hits + missed + wrong
        scores[f"iou {group}"] = hits / total if total else math.nan
        if all(CLASSES[name].instance_size for name in members):
            total = weighted_hits + weighted_missed + wrong
            scores[f"iiou {group}"] = weighted_hits / total if total else math.nan
    return scores


def random_image(seed: int) -> tuple[Map, Map, Map]:
    random = np.random.default_rng(seed)
    truth = patches([-1, 0, 1, 7, 11, 12, 13, 15, 18], (40, 53), seed).astype(np.int64)
    prediction = np.where(
        random.random(truth.shape) < 0.6, truth, random.integers(-1, 19, (40, 53))
    )
    instances = labels_of(truth)
    things = instances >= 24
    number = random.integers(0, 3, 40)[:, None] + 0 * instances
    instances = np.where(things, instances * 1000 + number, instances)
    instances[:6] = labels_of(truth)[:6]  # groups, of which no instance is told apart
    instances[-3:, :9] = 29001  # a caravan, which is not evaluated
    return prediction, truth, instances


def test_it_is_the_official_definition() -> None:
    images = [random_image(seed) for seed in range(3)]
    parts = [CityscapesQuality(NAMES) for _ in range(2)]
    for k, (prediction, truth, instances) in enumerate(images):
        part = parts[k % 2]
        part.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        part.add_instances(torch.from_numpy(prediction), torch.from_numpy(instances))
    quality = parts[0]
    for name in ("confusion", "right", "missed"):  # as processes add their states
        setattr(quality, name, getattr(quality, name) + getattr(parts[1], name))
    found, expected = quality.compute(), by_hand(images)
    for k, name in enumerate(NAMES):
        iiou = expected.get(f"iiou {name}", math.nan)
        assert found["iiou_per_class"][k].item() == pytest.approx(iiou, nan_ok=True)
    categories = dict.fromkeys(each.category for each in CLASSES.values())
    for category in categories:
        iou = expected[f"iou category {category}"]
        assert found[f"category_iou_{category}"].item() == pytest.approx(iou, nan_ok=True)
    for category in ("human", "vehicle"):
        iiou = expected[f"iiou category {category}"]
        assert found[f"category_iiou_{category}"].item() == pytest.approx(iiou)
    assert "category_iiou_flat" not in found
    things = [v for k, v in expected.items() if k.startswith("iiou ") and "category" not in k]
    assert found["iiou"].item() == pytest.approx(np.nanmean(things))
    assert found["category_iou"].item() == pytest.approx(
        np.nanmean([expected[f"iou category {category}"] for category in categories])
    )


def test_a_small_instance_counts_as_much_as_a_large_one() -> None:
    truth = torch.full((10, 10), 13)
    instances = torch.full((10, 10), 26000)
    instances[0, 0] = 26001
    prediction = truth.clone()
    prediction[0, 0] = 0
    quality = CityscapesQuality(NAMES)
    quality.update(prediction, truth)
    quality.add_instances(prediction, instances)
    scores = quality.compute()
    assert scores["iou_per_class"][13].item() == pytest.approx(0.99)
    assert scores["iiou"].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="shape of prediction"):
        quality.add_instances(prediction, instances[:5])


@pytest.fixture
def recipe(tmp_path: Path) -> Config:
    write_cityscapes(tmp_path)
    return load_config("cityscapes/r101", [f"data.root={tmp_path}"])


def test_the_recipe_measures_it(recipe: Config) -> None:
    dataset = build_dataset(recipe.data, "val")
    check_measures(recipe.eval, dataset)
    measures, sample = Measures(dataset.info, recipe.eval, CPU), dataset[0]
    measures.update(Prediction(classes=sample.semantic_map()), sample)
    metrics, per_class, _ = measures.compute()
    assert metrics["category_iou"] == metrics["iiou"] == metrics["category_iiou"] == 1
    assert [not math.isnan(value) for value in per_class["iiou"]] == [
        name in ("person", "car", "bicycle") for name in NAMES
    ]


def test_label_files_by_train_ids_have_instances_too(recipe: Config) -> None:
    labels = Path("a_gtFine_labelTrainIds.png")
    assert instance_file(labels).name == "a_gtFine_instanceIds.png"
    with pytest.raises(DatasetError, match="needs label files named"):
        instance_file(Path("a.png"))


def test_what_is_missing_is_said_early(recipe: Config) -> None:
    dataset = build_dataset(recipe.data, "val")
    (file,) = recipe.data.root.glob("gtFine/val/*/*instanceIds.png")  # type: ignore[union-attr]
    save(file, np.zeros((ODD[0], 3), np.uint16))
    with pytest.raises(DatasetError, match=r"3x45 pixels, its label file 67x45"):
        Measures(dataset.info, recipe.eval, CPU).update(
            Prediction(classes=dataset[0].semantic_map()), dataset[0]
        )
    file.unlink()
    with pytest.raises(DatasetError, match=r"1 of 1 are missing, first .*instanceIds\.png"):
        check_measures(recipe.eval, dataset)


def test_other_formats_are_refused() -> None:
    config = parse_config({"data": {"format": "shapes"}, "eval": {"cityscapes": True}})
    with pytest.raises(ConfigError, match=r"data\.format: folder, .*; got Shapes: set eval"):
        check_measures(config.eval, build_dataset(config.data, "val"))


def test_other_classes_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="supports only the 19 classes of Cityscapes, but the data has disc"
    ):
        CityscapesQuality(("disc", "square"))
    with pytest.raises(ConfigError, match="semantic is off"):
        parse_config(
            {
                "data": {"format": "shapes"},
                "eval": {"semantic": False, "panoptic": True, "cityscapes": True},
            }
        )
