"""The files with the figures of an evaluation, and degenerate sets of images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.model_cases import tiny_model
from PIL import Image

from maskformer import ImageProcessor
from maskformer.config.schema import EvalConfig
from maskformer.data import DatasetInfo, EvalLoader, Sample
from maskformer.data.palette import palette
from maskformer.evaluation.evaluate import Evaluation, evaluate
from maskformer.evaluation.figures import read_metrics, write_confusion, write_metrics
from maskformer.output.confusion_picture import draw_confusion
from maskformer.output.console import Progress

NAN = math.nan
EVERYTHING = EvalConfig(panoptic=True, object_mask_threshold=0.0, overlap_threshold=0.0)
SEMANTIC = {"miou", "fwiou", "macc", "pacc"}
PANOPTIC = {"pq", "sq", "rq"}


class OneSample:
    """A data set of one image whose left half has class 0; the right half is void."""

    num_images = 1

    def __init__(self, info: DatasetInfo, labelled: bool = True) -> None:
        self.info = info
        segments = torch.full((64, 64), -1, dtype=torch.int32)
        if labelled:
            segments[:, :32] = 0
        labels = torch.zeros(int(labelled), dtype=torch.int64)
        crowd = torch.zeros(int(labelled), dtype=torch.bool)
        image = torch.full((3, 64, 64), 90, dtype=torch.uint8)
        self.sample = Sample(image, segments, labels, crowd, "one")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> Sample:
        return self.sample


def measure(classes: int, things: frozenset[int], *, labelled: bool = True) -> Evaluation:
    names = tuple(f"c{index}" for index in range(classes))
    info = DatasetInfo(names, things, palette(classes), tuple(range(classes)))
    torch.manual_seed(0)
    model = tiny_model(num_classes=classes)
    loader = EvalLoader(OneSample(info, labelled), ImageProcessor(None, None).batch)
    cpu, silent = torch.device("cpu"), Progress(enabled=False)
    return evaluate(model, loader, info, EVERYTHING, cpu, silent)


class TestDegenerateSets:
    @pytest.mark.parametrize("things", [frozenset(), frozenset({0})])
    def test_one_class_has_all_figures(self, things: frozenset[int]) -> None:
        found = measure(1, things)
        assert found.metrics.keys() >= SEMANTIC | PANOPTIC
        assert ("pq_things" in found.metrics) == bool(things)
        assert found.metrics["miou"] == found.metrics["pacc"] == 1
        assert not [name for name in found.metrics if "per_class" in name]
        assert found.per_class.keys() == {"iou", "accuracy", "pq", "sq", "rq"}
        assert all(len(values) == 1 for values in found.per_class.values())
        assert found.per_class["iou"] == [1.0]
        assert found.confusion is not None
        assert found.confusion.tolist() == [[64 * 32, 0], [0, 0]]

    def test_a_class_that_never_occurs_has_none(self) -> None:
        found = measure(3, frozenset({2}))
        assert math.isnan(found.per_class["iou"][2])
        assert math.isnan(found.per_class["accuracy"][1])
        assert found.metrics["macc"] == found.per_class["accuracy"][0]

    def test_nothing_labelled(self, tmp_path: Path) -> None:
        found = measure(1, frozenset(), labelled=False)
        assert found.metrics.keys() >= SEMANTIC
        assert all(math.isnan(found.metrics[name]) for name in SEMANTIC)
        assert found.score == -math.inf
        write_metrics(tmp_path, found.metrics, found, ["c0"])
        write_confusion(tmp_path, found, ["c0"])
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written["miou"] is None
        assert written["per_class"]["iou"] == {"c0": None}


class TestFiles:
    def test_figures_go_by_name(self, tmp_path: Path) -> None:
        evaluation = Evaluation({}, {"iou": [0.5, NAN, 0.25], "accuracy": [1.0, NAN, 0.5]}, 0.4)
        metrics = {"miou": 0.375, "pq": NAN}
        write_metrics(tmp_path, metrics, evaluation, ["sky", "car", "sky"])
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written == {
            "miou": 0.375,
            "pq": None,
            "per_class": {
                # Names that are not unique get their number.
                "iou": {"sky (0)": 0.5, "car": None, "sky (2)": 0.25},
                "accuracy": {"sky (0)": 1.0, "car": None, "sky (2)": 0.5},
            },
        }
        read = read_metrics(tmp_path)
        assert read is not None
        assert read["miou"] == 0.375
        assert math.isnan(read["pq"])
        assert read.keys() == metrics.keys()

    @pytest.mark.parametrize("text", ["", "[1]", '{"miou": "x"}', '{"miou": {}}'])
    def test_figures_that_cannot_be_read(self, tmp_path: Path, text: str) -> None:
        assert read_metrics(tmp_path) is None
        (tmp_path / "metrics.json").write_text(text)
        assert read_metrics(tmp_path) is None

    def test_the_confusion_matrix(self, tmp_path: Path) -> None:
        matrix = torch.tensor([[8, 2, 0], [1, 5, 4], [0, 0, 0]])
        evaluation = Evaluation({}, {}, 0.0, confusion=matrix)
        write_confusion(tmp_path, evaluation, ["sky", "ca\udcffr"])
        written = json.loads((tmp_path / "confusion_matrix.json").read_text())
        assert written["classes"] == ["sky", "ca\\xffr"]
        assert written["matrix"] == [[8, 2, 0], [1, 5, 4]]
        assert written["rows"] == "ground truth"
        with Image.open(tmp_path / "confusion_matrix.png") as picture:
            assert picture.size > (100, 100)

    def test_nothing_without_label_maps(self, tmp_path: Path) -> None:
        write_confusion(tmp_path, Evaluation({}, {}, 0.0), ["sky"])
        assert not list(tmp_path.iterdir())


class TestConfusionPicture:
    @pytest.mark.parametrize("count", [1, 2, 24, 25, 150])
    def test_a_cell_per_pair_that_occurs(self, count: int) -> None:
        matrix = torch.zeros(count + 1, count + 1, dtype=torch.int64)
        matrix.fill_diagonal_(10)
        matrix[count, count] = 0
        picture = draw_confusion(matrix, [f"class {index}" for index in range(count)])
        cell = 40 if count <= 25 else 16
        right, bottom = (side - 12 - cell // 4 for side in picture.size)
        if count >= 10:  # else the caption is wider
            assert picture.getpixel((right, bottom)) == (20, 60, 130)
            assert picture.getpixel((right - cell, bottom)) == (255, 255, 255)
        assert picture.size[1] >= count * cell
        assert picture.size[1] <= count * cell + 150

    def test_classes_that_do_not_occur_take_no_room(self) -> None:
        matrix = torch.zeros(151, 151, dtype=torch.int64)
        matrix[3, 3], matrix[3, 77], matrix[3, 150] = 50, 30, 20
        matrix[9, 9] = 1
        few = draw_confusion(matrix, ["name"] * 150)
        # 3 and 9 are there, 77 and void are predicted.
        assert few.size[1] < 4 * 40 + 100

    def test_small_shares_are_seen(self) -> None:
        matrix = torch.tensor([[990, 10, 0], [0, 1, 0], [0, 0, 0]])
        picture = draw_confusion(matrix, ["a", "b"])
        colors = {color for _, color in picture.getcolors(10_000)}
        shade = (232, 236, 242)  # a tenth of the way, the root of a hundredth
        assert shade in colors

    @pytest.mark.parametrize("shape", [(2, 2), (3, 4)])
    def test_another_size_is_refused(self, shape: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=r"\[K \+ 1, K \+ 1\] for 2 classes"):
            draw_confusion(torch.zeros(shape), ["a", "b"])
