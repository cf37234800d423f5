"""Mask AP, against pycocotools used on files as its authors do."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.label_folders import data_config
from helpers.recipes import TINY, write_recipe
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer.cli import main
from maskformer.config.load import parse_config
from maskformer.data import Dataset, Sample, build_dataset
from maskformer.errors import ConfigError
from maskformer.evaluation.mask_precision import SUMMARY, MaskPrecision
from maskformer.evaluation.measures import check_measures
from mfkernels import Instances

SIZE = (120, 150)
IDS = {0: 7, 1: 3}


def box(random: np.random.Generator) -> list[float]:
    left, top = random.integers(0, 60, 2).tolist()
    width, height = random.integers(8, 90, 2).tolist()
    right, bottom = min(left + width, SIZE[1]), min(top + height, SIZE[0])
    return [left, top, right, top, right, bottom, left, bottom]


def write_objects(root: Path) -> None:
    """Three images of overlapping boxes, among them a crowd and one that lies wholly below."""
    random = np.random.default_rng(5)
    objects: list[dict[str, Any]] = []
    for image in range(3):
        Image.new("RGB", SIZE[::-1]).save(root / f"{image}.jpg")
        for k in range(6):
            shape = {"segmentation": [box(random)], "category_id": IDS[int(random.integers(2))]}
            objects.append(shape | {"image_id": image, "iscrowd": int(k == 3)})
        objects[-1] |= {"segmentation": [[0, 0, 150, 0, 150, 120, 0, 120]]}
    for number, each in enumerate(objects, 1):
        runs = coco_mask.frPyObjects(each["segmentation"], *SIZE)
        # As in COCO, the area is that of the polygon.
        each |= {"id": number, "area": float(coco_mask.area(runs).sum()) * 0.97}
        each["bbox"] = [0, 0, 1, 1]
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 120, "width": 150} for k in range(3)]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "x.json").write_text(json.dumps(content))


def detections(sample: Sample, seed: int) -> Instances:
    """Some objects, moved and misnamed, and some inventions."""
    random = np.random.default_rng(seed)
    assert sample.objects is not None
    masks = [torch.from_numpy(coco_mask.decode(each.runs)).bool() for each in sample.objects]
    masks = [torch.roll(mask, random.integers(-4, 5, 2).tolist(), (0, 1)) for mask in masks]
    masks += [torch.zeros(SIZE, dtype=torch.bool)]
    labels = [each.label for each in sample.objects] + [1]
    labels = [random.integers(1, 3) if random.random() < 0.2 else label for label in labels]
    scores = torch.from_numpy(random.random(len(masks)))
    return Instances(torch.stack(masks), torch.tensor(labels), scores, torch.zeros(len(masks), 4))


@pytest.fixture
def objects(tmp_path: Path) -> Dataset:
    write_objects(tmp_path)
    split = {"images": ".", "annotations": "x.json"}
    return build_dataset(data_config("coco_instances", tmp_path, split), "val")


def official(file: Path, found: list[Instances], category: dict[int, int]) -> COCOeval:
    results = [
        {
            "image_id": image,
            "category_id": category[label],
            "score": score,
            "segmentation": coco_mask.encode(np.asfortranarray(mask.numpy(), np.uint8)),
        }
        for image, each in enumerate(found)
        for mask, label, score in zip(
            each.masks, each.labels.tolist(), each.scores.tolist(), strict=True
        )
        if mask.any()
    ]
    with redirect_stdout(io.StringIO()):
        truth = COCO(file)
        evaluator = COCOeval(truth, truth.loadRes(results), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def test_it_is_what_pycocotools_says_of_the_files(objects: Dataset, tmp_path: Path) -> None:
    assert objects.info.classes == ("background", "cat", "dog")
    found = [detections(objects[k], k) for k in range(3)]
    precision = MaskPrecision(3, objects.info.things)
    for k, each in enumerate(found):
        precision.update(each, objects[k])
    scores = precision.compute()
    expected = official(tmp_path / "x.json", found, {1: 7, 2: 3})
    stats = dict(zip(SUMMARY, expected.stats.tolist(), strict=False))
    assert 0.05 < stats["ap"] < 0.95
    for name, value in stats.items():
        assert scores[name].item() == pytest.approx(value if value > -1 else np.nan, nan_ok=True)
    assert scores["ap_per_class"].isnan().tolist() == [True, False, False]
    assert scores["ap_per_class"][1:].mean().item() == pytest.approx(stats["ap"])


def test_hidden_objects_count_as_they_were_drawn(objects: Dataset) -> None:
    sample = objects[0]
    assert sample.objects is not None
    assert len(sample.objects) == 6
    assert len(sample.labels) < 6  # the last one hides all others but crowds
    masks = torch.stack([torch.from_numpy(coco_mask.decode(o.runs)).bool() for o in sample.objects])
    labels = torch.tensor([each.label for each in sample.objects])
    precision = MaskPrecision(3, objects.info.things)
    precision.update(Instances(masks, labels, torch.ones(6), torch.zeros(6, 4)), sample)
    assert precision.compute()["ap"].item() == pytest.approx(1)


def test_training_samples_carry_no_objects(objects: Dataset, tmp_path: Path) -> None:
    split = {"images": ".", "annotations": "x.json"}
    assert build_dataset(data_config("coco_instances", tmp_path, split), "train")[0].objects is None


def test_segments_of_things_serve_where_there_are_no_others() -> None:
    dataset = build_dataset(parse_config(TINY).data, "val")
    precision, nothing = (MaskPrecision(9, dataset.info.things) for _ in range(2))
    for sample in (dataset[k] for k in range(4)):
        size = sample.segments.shape
        masks = sample.segments == torch.arange(len(sample.labels))[:, None, None]
        scores, boxes = torch.ones(len(masks)), torch.zeros(len(masks), 4)
        precision.update(Instances(masks, sample.labels, scores, boxes), sample)
        none = Instances(torch.zeros(0, *size).bool(), sample.labels[:0], scores[:0], boxes[:0])
        nothing.update(none, sample)
    assert precision.compute()["ap"].item() == pytest.approx(1)
    assert nothing.compute()["ap"].item() == 0
    with pytest.raises(ValueError, match="size of the ground truth"):
        precision.update(none._replace(masks=torch.zeros(0, 3, 3).bool()), sample)
    assert MaskPrecision(9, dataset.info.things).compute()["ap"].isnan()


def test_an_evaluation_of_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        **TINY,
        "train": {**TINY["train"], "steps": 1, "best_metric": "ap50"},
        "eval": {"semantic": False, "instances": True, "pictures": 1},
    }
    recipe, output = write_recipe(tmp_path, values), tmp_path / "run"
    for arguments in (
        ["train", "--cpu", "--config", recipe, "--output", output],
        ["evaluate", "--checkpoint", output, "--output", tmp_path / "e"],
    ):
        monkeypatch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    figures = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert 0 <= figures["ap"] <= figures["ap50"] <= 1
    assert set(figures["per_class"]) == {"ap"}
    assert json.loads((tmp_path / "e" / "instances.json").read_text())


def test_what_does_not_fit_is_said_early(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no class of the data is a thing; .*isthing"):
        MaskPrecision(3, ())
    with pytest.raises(ConfigError, match=r"model\.architecture is per_pixel"):
        parse_config({**TINY, "model": {"architecture": "per_pixel"}, "eval": {"instances": True}})
    config = parse_config({**TINY, "eval": {"instances": True}})
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ConfigError, match=r"pip install 'mfkernels\[coco\]'"):
        check_measures(config.eval, build_dataset(config.data, "val"))
