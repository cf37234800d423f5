"""PQ against its definition; where torchmetrics agrees with it and where it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers.coco_format import ground_truth_as_panoptic
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.functional.detection import panoptic_quality

from maskformer.config.schema import CocoPanopticConfig, ShapesConfig
from maskformer.data import Sample, Shapes, build_dataset
from maskformer.data.label_reader import id_to_rgb
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.evaluation.semantic_quality import SemanticQuality

CLASSES, THINGS = 4, (0, 1)


def truth(segments, labels, crowd=()):
    segments = torch.tensor(segments, dtype=torch.int32)
    flags = torch.tensor([k in crowd for k in range(len(labels))], dtype=torch.bool)
    image = torch.zeros(3, *segments.shape, dtype=torch.uint8)
    return Sample(image, segments, torch.tensor(labels, dtype=torch.int64), flags, "x")


def prediction(ids, classes):
    """Class by id."""
    infos = [{"id": number, "category_id": label} for number, label in classes.items()]
    return torch.tensor(ids), infos


def score(*pairs, classes=CLASSES, things=THINGS, all_crowds=False):
    metric = PanopticQuality(classes, things, all_crowds=all_crowds)
    for predicted, sample in pairs:
        metric.update(predicted, sample)
    return metric.compute()


def by_definition(pairs, classes, things, all_crowds):
    """Pixel sets and loops; the words of the definition, one after the other."""
    iou, tp, fp, fn = ([0.0] * classes for _ in range(4))
    for (ids, infos), sample in pairs:
        pixels = {
            p: (int(i), int(s))
            for p, (i, s) in enumerate(zip(ids.flatten(), sample.segments.flatten(), strict=True))
        }
        void = {p for p, (_, s) in pixels.items() if s < 0}
        predicted = [
            ({p for p, (i, _) in pixels.items() if i == x["id"]}, x["category_id"]) for x in infos
        ]
        real = [
            ({p for p, (_, s) in pixels.items() if s == k}, int(label), bool(sample.crowd[k]))
            for k, label in enumerate(sample.labels)
        ]
        found = set()
        for mask, label in predicted:
            match = None
            for k, (other, other_label, crowd) in enumerate(real):
                union = len(mask) + len(other) - len(mask & other) - len(mask & void)
                if other_label == label and not crowd and union and len(mask & other) / union > 0.5:
                    match = k
                    iou[label] += len(mask & other) / union
            if match is not None:
                tp[label] += 1
                found.add(match)
                continue
            crowds = [other for other, other_label, crowd in real if crowd and other_label == label]
            crowds = set().union(*(crowds if all_crowds else crowds[-1:]))
            if len(mask & (void | crowds)) / len(mask) <= 0.5:
                fp[label] += 1
        for k, (_, label, crowd) in enumerate(real):
            if not crowd and k not in found:
                fn[label] += 1
    scores = {}
    occurs = [k for k in range(classes) if tp[k] + fp[k] + fn[k] > 0]
    groups = {
        "": occurs,
        "_things": [k for k in occurs if k in things],
        "_stuff": [k for k in occurs if k not in things],
    }
    for suffix, group in groups.items():
        if group:
            weight = {k: tp[k] + fp[k] / 2 + fn[k] / 2 for k in group}
            scores["pq" + suffix] = np.mean([iou[k] / weight[k] for k in group])
            scores["sq" + suffix] = np.mean([iou[k] / tp[k] if tp[k] else 0 for k in group])
            scores["rq" + suffix] = np.mean([tp[k] / weight[k] for k in group])
    return scores


@st.composite
def images(draw, void=True, crowd=True):
    """A 4x4 ground truth and a prediction that resembles it, both with void and all classes."""
    count = draw(st.integers(0 if void else 1, 4))
    pixels = st.lists(st.integers(-1 if void else 0, count - 1), min_size=16, max_size=16)
    segments = torch.tensor(draw(pixels)).reshape(4, 4).sort(0).values
    labels = draw(st.lists(st.integers(0, CLASSES - 1), min_size=count, max_size=count))
    present = segments.unique()
    present = present[present >= 0]
    segments = torch.searchsorted(present, segments).where(segments >= 0, -1)
    labels = [labels[k] for k in present]
    crowds = {k for k in range(len(labels)) if crowd and draw(st.integers(0, 3)) == 0}
    sample = truth(segments.tolist(), labels, crowds)
    changes = draw(
        st.lists(st.tuples(st.integers(0, 15), st.integers(0 if void else 1, 5)), max_size=8)
    )
    ids = (segments + 1).flatten()
    for place, number in changes:
        ids[place] = number
    listed = ids.unique()
    listed = listed[listed > 0].tolist()
    classes = {
        n: labels[n - 1]
        if n <= len(labels) and draw(st.integers(0, 4))
        else draw(st.integers(0, CLASSES - 1))
        for n in listed
    }
    return prediction(ids.reshape(4, 4).tolist(), dict(reversed(classes.items()))), sample


def summary(found):
    return {name: value.item() for name, value in found.items() if value.ndim == 0}


@settings(max_examples=150, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3), st.booleans())
def test_the_definition(pairs, all_crowds):
    expected = by_definition(pairs, CLASSES, THINGS, all_crowds)
    found = summary(score(*pairs, all_crowds=all_crowds))
    if not expected:
        assert all(math.isnan(value) for value in found.values())
    else:
        assert found == pytest.approx(expected, abs=1e-12)


def torchmetrics_pq(pairs):
    """Each pixel as (class, instance); class 9 is void."""

    def encode(segments, labels):
        table = torch.tensor([*labels, 9])
        return torch.stack([table[segments], segments + 1], -1)

    predicted = torch.stack(
        [
            encode(
                torch.tensor(np.searchsorted([i["id"] for i in infos], ids.numpy())).where(
                    ids > 0, -1
                ),
                [i["category_id"] for i in infos],
            )
            for ids, infos in [
                (ids, sorted(infos, key=lambda i: i["id"])) for (ids, infos), _ in pairs
            ]
        ]
    )
    real = torch.stack(
        [encode(sample.segments.long(), sample.labels.tolist()) for _, sample in pairs]
    )
    stuff = set(range(CLASSES)) - set(THINGS)
    return panoptic_quality(
        predicted, real, set(THINGS), stuff, allow_unknown_preds_category=True
    ).item()


def one_segment_per_stuff_class(predicted, sample):
    """torchmetrics merges stuff segments of one class; such pairs say nothing about void."""
    stuff = [i["category_id"] for i in predicted[1] if i["category_id"] not in THINGS]
    real = [k for k in sample.labels.tolist() if k not in THINGS]
    return len(set(stuff)) == len(stuff) and len(set(real)) == len(real)


@settings(max_examples=80, deadline=None)
@given(images(void=False, crowd=False).filter(lambda pair: one_segment_per_stuff_class(*pair)))
def test_torchmetrics_agrees_without_void_and_crowds(pair):
    assert torchmetrics_pq([pair]) == pytest.approx(score(pair)["pq"].item(), abs=1e-6)


def test_torchmetrics_agrees_on_void_ground_truth():
    pair = prediction([[1, 1, 1, 2]], {1: 0, 2: 2}), truth([[0, 0, -1, 1]], [0, 2])
    assert score(pair)["pq"] == torchmetrics_pq([pair]) == 1


def test_torchmetrics_forgives_void_predictions():
    """Pixels left void are missed: they belong to the union, and a segment left void is a miss."""
    half_void = prediction([[1, 1, 1, 0, 0]], {1: 0}), truth([[0, 0, 0, 0, 0]], [0])
    assert score(half_void)["pq"].item() == pytest.approx(0.6)
    assert torchmetrics_pq([half_void]) == 1
    missed = prediction([[1, 1, 0, 0]], {1: 0}), truth([[0, 0, 1, 1]], [0, 1])
    assert score(missed)["pq"] == 0.5
    assert torchmetrics_pq([missed]) == 1


def test_torchmetrics_knows_no_crowds():
    """As an ordinary segment, a crowd is a miss; as void, it swallows other classes too."""
    ids, classes = [[1, 1, 2, 2]], {1: 0, 2: 1}
    crowd = truth([[0, 0, 1, 1]], [0, 0], crowd=[1])
    found = score((prediction(ids, classes), crowd))
    assert found["pq_per_class"].tolist()[:2] == [1, 0]  # class 1 on a crowd of class 0 is wrong
    ordinary, void = truth([[0, 0, 1, 1]], [0, 0]), truth([[0, 0, -1, -1]], [0])
    assert torchmetrics_pq([(prediction(ids, classes), ordinary)]) == pytest.approx(
        (2 / 3) / 2, abs=1e-6
    )
    assert torchmetrics_pq([(prediction(ids, classes), void)]) == 1
    assert found["pq"] == 0.5


def test_nothing_at_all():
    empty = prediction([[0, 0]], {}), truth([[-1, -1]], [])
    found = score(empty)
    assert math.isnan(found["pq"])
    assert "pq_things" not in found
    assert found["pq_per_class"].isnan().all()
    assert math.isnan(torchmetrics_pq([empty]))


def test_one_side_empty():
    missed = score((prediction([[0, 0]], {}), truth([[0, 0]], [1])))
    assert missed["pq"] == missed["sq"] == missed["rq"] == 0
    invented = score((prediction([[1, 1]], {1: 3}), truth([[-1, 0]], [2])))
    assert invented["pq_per_class"].tolist()[2:] == [0, 0]


@pytest.mark.parametrize(("void", "wrong"), [(1, True), (2, True), (3, False)])
def test_predictions_on_void(void, wrong):
    """More than half on void is ignored, exactly half is wrong."""
    segments = [[-1] * void + [0] * (4 - void)]
    found = score((prediction([[5, 5, 5, 5]], {5: 0}), truth(segments, [2])))
    assert (found["pq_per_class"][0] == 0) == wrong
    assert math.isnan(found["pq_per_class"][0]) != wrong


def test_half_overlap_is_no_match():
    found = score((prediction([[1, 1, 1, 0]], {1: 0}), truth([[-1, 0, 0, 0]], [0])))
    assert found["pq"].item() == pytest.approx(2 / 3)
    assert score((prediction([[1, 1, 2, 2]], {1: 0, 2: 1}), truth([[0, 0, 0, 0]], [0])))["pq"] == 0


def test_crowds():
    inside = prediction([[1, 1, 1, 2]], {1: 0, 2: 2})
    crowd = truth([[0, 0, 1, 2]], [0, 1, 2], crowd=[0])
    found = score((inside, crowd))
    assert math.isnan(found["pq_per_class"][0])  # neither found, nor missed, nor wrong
    assert found["pq_per_class"][1] == 0
    assert found["pq_per_class"][2] == 1


@pytest.mark.parametrize("all_crowds", [False, True])
@pytest.mark.parametrize(("column", "crowd"), [(0, "first"), (4, "last")])
def test_of_several_crowds_of_a_class_the_last_counts(column, crowd, all_crowds):
    """A prediction of class 0 wholly on one of two crowds of it: officially wrong on the first."""
    ids = torch.zeros(1, 8, dtype=torch.int64)
    ids[:, column : column + 3] = 1
    image = truth([[0, 0, 0, 0, 1, 1, 1, 2]], [0, 0, 2], crowd=[0, 1])
    found = score((prediction(ids.tolist(), {1: 0}), image), all_crowds=all_crowds)
    wrong = crowd == "first" and not all_crowds
    assert math.isnan(found["pq_per_class"][0]) != wrong


def test_groups():
    pair = prediction([[1, 1, 2, 2]], {1: 0, 2: 3}), truth([[0, 0, 1, 2]], [0, 3, 2])
    found = summary(score(pair))
    assert found["pq_things"] == 1
    assert found["pq_stuff"] == 0
    assert found["pq"] == pytest.approx(1 / 3)


def test_ground_truth_is_perfect():
    data = Shapes(ShapesConfig(train_images=150), "train")
    found = score(
        *((ground_truth_as_panoptic(s), s) for s in data), classes=9, things=data.info.things
    )
    assert set(summary(found).values()) == {1.0}


def test_ground_truth_of_coco_is_perfect(real_data):
    split = {"images": "images", "panoptic": "panoptic", "annotations": "panoptic.json"}
    root = real_data / "coco_panoptic_sample"
    data = build_dataset(CocoPanopticConfig(root=root, train=split, val=split), "val")
    pairs = [(ground_truth_as_panoptic(s), s) for s in data]
    found = summary(score(*pairs, classes=133, things=data.info.things))
    assert set(found.values()) == {1.0}
    assert any(s.crowd.any() for s in data)
    semantic = SemanticQuality(133)
    for sample in data:
        semantic.update(sample.semantic_map(), sample.semantic_map())
    assert semantic.compute()["miou"] == 1


def test_against_panopticapi(tmp_path):
    """The reference evaluation, where somebody has it."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    data = Shapes(ShapesConfig(val_images=20), "val")
    categories = {k: {"id": k, "isthing": int(k in data.info.things)} for k in range(9)}
    matched, pairs, metric = [], [], PanopticQuality(9, data.info.things)
    for i, sample in enumerate(data):
        other = data[(i + 1) % 20] if i % 3 == 0 else sample
        ids, infos = ground_truth_as_panoptic(other)
        pairs.append(((ids, infos), sample))
        metric.update((ids, infos), sample)
        entries = []
        for name, numbers, listed in (
            (
                "gt",
                sample.segments + 1,
                [
                    {"id": k + 1, "category_id": c, "iscrowd": int(sample.crowd[k])}
                    for k, c in enumerate(sample.labels.tolist())
                ],
            ),
            ("pred", ids, infos),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(id_to_rgb(numbers.numpy())).save(tmp_path / name / f"{i}.png")
            areas = numbers.flatten().bincount().tolist()
            segments = [{"iscrowd": 0} | s | {"area": areas[s["id"]]} for s in listed]
            entries.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        matched.append(tuple(entries))
    stat = evaluation.pq_compute_single_core(
        0, matched, str(tmp_path / "gt"), str(tmp_path / "pred"), categories
    )
    results, _ = stat.pq_average(categories, isthing=None)
    assert metric.compute()["pq"].item() == pytest.approx(results["pq"], abs=1e-9)


@pytest.mark.parametrize(
    ("predicted", "said"),
    [
        (
            prediction([[1, 1, 1]], {1: 0}),
            r"prediction must have the size of the ground truth \[1, 2\], got \[1, 3\]",
        ),
        (prediction([[1, 1]], {1: 4}), r"prediction must hold classes in 0..3, got \[4\]"),
        (
            prediction([[1, 1]], {1: 0, 2: 0}),
            r"lists the segment ids \[1, 2\], but its map holds \[1\]",
        ),
        (prediction([[1, 3]], {1: 0}), r"lists the segment ids \[1\], but its map holds \[1, 3\]"),
        (
            prediction([[-1, 1]], {1: 0}),
            r"lists the segment ids \[1\], but its map holds \[-1, 1\]",
        ),
    ],
)
def test_impossible_predictions(predicted, said):
    with pytest.raises(ValueError, match=said):
        score((predicted, truth([[0, 0]], [0])))


def test_a_segment_listed_twice():
    infos = [{"id": 1, "category_id": 0}, {"id": 1, "category_id": 1}]
    with pytest.raises(
        ValueError, match=r"lists the segment ids \[1, 1\], but its map holds \[1\]"
    ):
        score(((torch.ones(1, 2, dtype=torch.int32), infos), truth([[0, 0]], [0])))


def test_impossible_ground_truth():
    with pytest.raises(ValueError, match=r"ground truth must hold classes in 0..3, got \[7\]"):
        score((prediction([[1, 1]], {1: 0}), truth([[0, 0]], [7])))


PAIRS = [
    (prediction([[1, 1, 2, 2]], {1: 0, 2: 3}), truth([[0, 0, 1, 2]], [0, 3, 2])),
    (prediction([[1, 1, 1, 0]], {1: 0}), truth([[-1, 0, 0, 0]], [0])),
    (prediction([[0, 0]], {}), truth([[0, 0]], [1])),
]


def score_in_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    panoptic, semantic = PanopticQuality(CLASSES, THINGS), SemanticQuality(CLASSES)
    for predicted, sample in PAIRS[rank::2]:  # two images here, one there
        panoptic.update(predicted, sample)
        semantic.update(sample.semantic_map().clamp(max=2), sample.semantic_map())
    torch.save(summary(panoptic.compute()) | summary(semantic.compute()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_add_up(tmp_path):
    mp.start_processes(score_in_process, (tmp_path,), nprocs=2, start_method="fork")
    semantic = SemanticQuality(CLASSES)
    for _, sample in PAIRS:
        semantic.update(sample.semantic_map().clamp(max=2), sample.semantic_map())
    expected = summary(score(*PAIRS)) | summary(semantic.compute())
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [expected, expected]
