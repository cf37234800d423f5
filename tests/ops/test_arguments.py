"""Numbers and arrays of other types than expected: taken, or refused by their name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import Case

import mfkernels as mfk
from mfkernels import MaskFormerCriterion, SegmentTargets, use_backend
from mfkernels.integrations import point_sampling

CASE = Case(layers=1, counts=(2,), queries=3, low=(3, 4), size=(6, 5))
CLASS_LOGITS, EMBED, FEATURES = CASE.predictions()
TARGETS, ASSIGNMENT = CASE.targets(), torch.tensor([[[0, 2]]])
LOGITS, TRUTH = torch.randn(2, 7), torch.rand(2, 7)

CALLS: dict[str, Callable[[Any], Any]] = {
    "alpha": lambda x: mfk.sigmoid_focal_loss(LOGITS, TRUTH, alpha=x),
    "gamma": lambda x: mfk.mask_loss(EMBED, FEATURES, TARGETS, ASSIGNMENT, gamma=x)[0],
    "num_masks": lambda x: mfk.mask_loss(EMBED, FEATURES, TARGETS, ASSIGNMENT, num_masks=x)[0],
    "dice_weight": lambda x: mfk.matching_cost(
        CLASS_LOGITS, EMBED, FEATURES, TARGETS, dice_weight=x
    ),
    "mask_weight": lambda x: MaskFormerCriterion(4, mask_weight=x).weights["loss_mask"],
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_numbers(name: str, backend: Any) -> None:
    with use_backend(backend):
        for wrong in ("1", None, np.array(1.0)):
            if wrong is None and name == "num_masks":
                continue  # the number of segments
            with pytest.raises(TypeError, match=f"{name} must be a number, got"):
                CALLS[name](wrong)
        expected = CALLS[name](0.5)
        for number in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5)):
            assert torch.equal(torch.as_tensor(CALLS[name](number)), torch.as_tensor(expected))


def test_numbers_that_count() -> None:
    with pytest.raises(TypeError, match="num_classes must be a number, got '3'"):
        MaskFormerCriterion("3")  # type: ignore[arg-type]
    for wrong, error in (("2", TypeError), (torch.ones(2), ValueError)):
        with pytest.raises(error, match="num_masks must be a number"):
            mfk.focal_dice_loss(LOGITS, TRUTH, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("convert", [np.asarray, torch.Tensor.tolist])
def test_targets_are_tensors(convert: Callable[[Any], Any]) -> None:
    masks, labels = torch.ones(2, 3, 3), torch.tensor([0, 1])
    maps = torch.zeros(3, 3).long()
    for name, call in (
        (r"masks\[0\]", lambda: SegmentTargets.from_masks([convert(masks)], [labels])),
        (r"labels\[0\]", lambda: SegmentTargets.from_masks([masks], [convert(labels)])),
        (r"label_maps\[0\]", lambda: SegmentTargets.from_label_maps([convert(maps)], [labels])),
        (r"class_maps\[0\]", lambda: SegmentTargets.from_class_maps([convert(maps)])),
        ("labels", lambda: SegmentTargets(convert(labels), (2,), masks=masks.bool())),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got (ndarray|list)"):
            call()


def test_the_former_name_of_point_sampling() -> None:
    with pytest.warns(FutureWarning, match="point_matching_cost"):
        points = importlib.import_module("mfkernels.integrations.points")
    assert points.matching_cost is point_sampling.point_matching_cost
    assert points.mask_losses is point_sampling.mask_losses
