"""mIoU against its definition, and the cases where there is nothing to count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer.evaluation.semantic_quality import SemanticQuality


def score(*pairs, classes=3):
    metric = SemanticQuality(classes)
    for prediction, target in pairs:
        metric.update(torch.tensor(prediction), torch.tensor(target))
    return metric.compute()


def by_definition(prediction, target, classes):
    """Per class: intersection over union among labelled pixels."""
    pairs = [(p, t) for p, t in zip(prediction, target, strict=True) if t >= 0]
    ious, recalls, sizes = [], [], []
    for k in range(classes):
        truth = sum(t == k for _, t in pairs)
        right = sum(p == t == k for p, t in pairs)
        union = sum(k in pair for pair in pairs)
        if truth:
            ious.append(right / union)
            recalls.append(right / truth)
            sizes.append(truth)
    right = sum(p == t for p, t in pairs)
    return {
        "miou": sum(ious) / len(ious),
        "macc": sum(recalls) / len(recalls),
        "fwiou": sum(i * n for i, n in zip(ious, sizes, strict=True)) / len(pairs),
        "pacc": right / len(pairs),
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=40).filter(
        lambda pixels: any(target >= 0 for _, target in pixels)
    ),
    st.integers(0, 40),
)
def test_the_definition(pixels, cut):
    prediction, target = zip(*pixels, strict=True)
    expected = by_definition(prediction, target, 4)
    pairs = [(prediction[:cut], target[:cut]), (prediction[cut:], target[cut:])]
    found = score(*[p for p in pairs if p[0]], classes=4)
    assert {name: found[name].item() for name in expected} == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    found = score(([[0, 0, 1, 1]], [[0, 1, 1, -1]]))
    assert found["iou_per_class"].tolist()[:2] == [0.5, 0.5]
    assert math.isnan(found["iou_per_class"][2])
    assert found["miou"] == 0.5
    assert found["pacc"].item() == pytest.approx(2 / 3)


def test_a_class_that_is_only_predicted_is_no_class_of_the_mean():
    found = score(([0, 0, 2, 1], [0, 0, 0, 1]))
    assert found["miou"].item() == pytest.approx((2 / 3 + 1) / 2)


def test_predictions_on_void_do_not_count():
    assert score(([0, 1, 1], [0, -1, -1]))["miou"] == 1


def test_void_predictions_are_misses():
    found = score(([0, -1], [0, 0]))
    assert found["miou"] == found["macc"] == found["pacc"] == 0.5


def test_nothing_labelled():
    found = score(([0, 1], [-1, -1]))
    assert all(math.isnan(found[name]) for name in ("miou", "fwiou", "macc", "pacc"))
    assert found["iou_per_class"].isnan().all()


def test_an_empty_image_changes_nothing():
    assert score(([0], [0]), (torch.zeros(0, 4).long().tolist(), []))["miou"] == 1


def test_reset_and_half_precision_do_no_harm():
    metric = SemanticQuality(2).half()
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    metric.reset()
    metric.update(torch.zeros(70_000, dtype=torch.uint8), torch.zeros(70_000, dtype=torch.int32))
    assert metric.compute()["miou"] == 1
    assert metric.confusion.sum() == 70_000


@pytest.mark.parametrize(
    ("prediction", "target", "said"),
    [
        ([0, 1], [0], r"prediction must have the shape of target \[1\], got \[2\]"),
        ([3], [0], r"prediction must hold classes in -1..2, got 3..3"),
        ([0, 0], [0, -2], r"target must hold classes in -1..2, got -2..0"),
        ([0], [255], r"target must hold classes in -1..2, got 255..255"),
    ],
)
def test_impossible_values(prediction, target, said):
    with pytest.raises(ValueError, match=said):
        score((prediction, target))
