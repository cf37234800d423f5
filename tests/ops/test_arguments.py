"""Numbers and arrays of other types than expected: taken, or refused by their name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import Case

import mfkernels as mfk
from mfkernels import MaskFormerCriterion, SegmentTargets, use_backend
from mfkernels.integrations import point_sampling
from mfkernels.integrations.detectron2 import HungarianMatcher

CASE = Case(layers=1, counts=(2,), queries=3, low=(3, 4), size=(6, 5))
CLASS_LOGITS, EMBED, FEATURES = CASE.predictions()
TARGETS, ASSIGNMENT = CASE.targets(), torch.tensor([[[0, 2]]])
LOGITS, TRUTH = torch.randn(2, 7), torch.rand(2, 7)
MAPS = torch.randn(1, 16, 3, 2).contiguous(memory_format=torch.channels_last)
CHANNELS = torch.randn(2, 16)
"""The weight and bias of a norm."""

CALLS: dict[str, Callable[[Any], Any]] = {
    "alpha": lambda x: mfk.sigmoid_focal_loss(LOGITS, TRUTH, alpha=x),
    "gamma": lambda x: mfk.mask_loss(EMBED, FEATURES, TARGETS, ASSIGNMENT, gamma=x)[0],
    "num_masks": lambda x: mfk.mask_loss(EMBED, FEATURES, TARGETS, ASSIGNMENT, num_masks=x)[0],
    "dice_weight": lambda x: mfk.matching_cost(
        CLASS_LOGITS, EMBED, FEATURES, TARGETS, dice_weight=x
    ),
    "eps": lambda x: mfk.group_norm(MAPS, 4, *CHANNELS, eps=x),
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


@pytest.mark.parametrize(
    "weight", [torch.ones(3), torch.tensor(1.0, requires_grad=True), torch.tensor(True), 10**400]
)
def test_weights_are_one_number_each(weight: Any) -> None:
    for call in (
        lambda: MaskFormerCriterion(4, mask_weight=weight),
        lambda: MaskFormerCriterion(4, no_object_weight=weight),
        lambda: HungarianMatcher(weight),
        lambda: mfk.matching_cost(CLASS_LOGITS, EMBED, FEATURES, TARGETS, mask_weight=weight),
        lambda: mfk.group_norm(MAPS, 4, *CHANNELS, eps=weight),
    ):
        with pytest.raises((TypeError, ValueError), match=r"(weight|cost_class|eps) must be "):
            call()


def test_weights_may_be_tensors_and_fractions() -> None:
    criterion = MaskFormerCriterion(
        4, mask_weight=torch.tensor([20.0]), no_object_weight=Fraction(1, 10)
    )
    assert criterion.weights["loss_mask"] == 20
    outputs = {"class_logits": CLASS_LOGITS, "mask_embed": EMBED, "pixel_features": FEATURES}
    criterion = MaskFormerCriterion(CASE.classes, mask_weight=torch.tensor([20.0]))
    expected = MaskFormerCriterion(CASE.classes)(outputs, TARGETS, num_masks=torch.tensor(3.0))
    for number in (3, 3.0, np.float32(3)):
        torch.testing.assert_close(criterion(outputs, TARGETS, num_masks=number), expected)
    for wrong, message in ((torch.ones(3), r"0-dim, got \[3\]"), (0, "positive"), ("3", "number")):
        with pytest.raises((TypeError, ValueError), match=f"num_masks must be .*{message}"):
            criterion(outputs, TARGETS, num_masks=wrong)
    for wrong in (3.5, math.nan, math.inf, True):
        with pytest.raises(TypeError, match="num_classes must be an integer"):
            MaskFormerCriterion(wrong)


def test_counts_are_integers() -> None:
    cost = torch.randn(3, 5, 4)
    for wrong in (2.9, [1.5, 2, 3], True, "3", [[1], [2, 3]], (n for n in range(3))):
        with pytest.raises(TypeError, match="row_counts must be integers"):
            mfk.batch_linear_assignment(cost, row_counts=wrong)
    for counts in (2, [2, 2, 2], np.array([2, 2, 2], dtype=np.int32), torch.tensor(2)):
        columns = mfk.batch_linear_assignment(cost, row_counts=counts)
        assert ((columns >= 0).sum(1) == 2).all()
    assert mfk.batch_linear_assignment(torch.randn(0, 5, 4), row_counts=[]).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_class_maps_of_unsigned_integers(dtype: torch.dtype) -> None:
    targets = SegmentTargets.from_class_maps(torch.tensor([[[1, 2], [255, 2]]]).to(dtype))
    assert targets.labels.tolist() == [1, 2]
    for wrong in ([1, 2], "2", None, math.nan):
        with pytest.raises(TypeError, match="ignore_index must be an integer"):
            SegmentTargets.from_class_maps(torch.zeros(1, 2, 2).long(), wrong)  # type: ignore[arg-type]


def test_thresholds_and_sizes_of_inference() -> None:
    given = (CLASS_LOGITS[0], EMBED[0], FEATURES, (6, 5))
    for name in ("object_mask_threshold", "overlap_threshold"):
        for wrong in (None, "2", math.nan, np.array(0.5), 1j):
            with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
                mfk.panoptic_segmentation(*given, thing_classes=(), **{name: wrong})
        for number in (Fraction(1, 2), np.float32(0.5), torch.tensor(0.5)):
            mfk.panoptic_segmentation(*given, thing_classes=(), **{name: number})
    with pytest.raises(TypeError, match=r"thing_classes must be an integer, got 0\.9"):
        mfk.panoptic_segmentation(*given, thing_classes=[0.9])
    for size in ((9.9, 8.2), "99", (math.inf, 9), (10**400, 9), (1 << 25, 9)):
        with pytest.raises(
            ValueError, match=r"size must be .* pairs of positive integers \(height, width\)"
        ):
            mfk.semantic_segmentation(*given[:3], size)
    for wrong, error in ((torch.tensor(True), TypeError), (2.0, TypeError), (0, ValueError)):
        with pytest.raises(error, match="top_k must be"):
            mfk.instance_segmentation(*given, top_k=wrong)


def test_tensors_are_dense_and_of_16_bits_or_more() -> None:
    others = (
        FEATURES.to_sparse(),
        FEATURES.to_mkldnn(),
        FEATURES.to(torch.float8_e4m3fn),
    )
    for wrong in others:
        with pytest.raises(TypeError, match=r"pixel_features must (be a dense|have at least 16)"):
            mfk.matching_cost(CLASS_LOGITS, EMBED, wrong, TARGETS)
    for cost in (torch.eye(3).to_sparse(), torch.nested.nested_tensor([torch.eye(3)])):
        with pytest.raises(TypeError, match="cost must be a dense tensor"):
            mfk.batch_linear_assignment(cost)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.to(torch.complex64),
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    ],
)
def test_targets_are_plain_real_numbers(convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    masks, points = TRUTH[:, None], torch.rand(2, 5, 2)
    for call in (
        lambda: mfk.sigmoid_focal_loss(LOGITS, convert(TRUTH)),
        lambda: mfk.focal_dice_loss(LOGITS, convert(TRUTH)),
        lambda: mfk.point_loss(LOGITS[:, None], convert(masks), points),
    ):
        with pytest.raises(TypeError, match=r"targets must hold plain real numbers, got torch\."):
            call()


def test_quantized_integers_are_rejected_by_name() -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2, 4, 4), 1.0, 0, torch.qint8)
    labels = [torch.zeros(2, dtype=torch.long)] * 2
    with pytest.raises(TypeError, match=r"must have an integer dtype, got torch\.qint8"):
        mfk.SegmentTargets.from_label_maps(quantized, labels)
    with pytest.raises(TypeError, match=r"row_counts must be integers, got torch\.qint8"):
        mfk.batch_linear_assignment(torch.rand(2, 3, 3), row_counts=quantized[:, 0, 0])


@pytest.mark.parametrize("compiled", [False, True])
def test_exponents_that_are_traced(compiled: bool) -> None:
    """No look at their values is possible."""
    gammas = torch.tensor([0.5, 1.0, 2.0])

    def loss(gamma: torch.Tensor) -> torch.Tensor:
        return mfk.sigmoid_focal_loss(LOGITS, TRUTH, 0.25, gamma, reduction="sum")

    expected = torch.stack([loss(gamma) for gamma in gammas])
    if compiled:
        traced = torch.compile(loss, backend="aot_eager", fullgraph=True)
        found = torch.stack([traced(gamma) for gamma in gammas])
    else:
        found = torch.func.vmap(loss)(gammas)
    torch.testing.assert_close(found, expected)


def test_numbers_that_count() -> None:
    with pytest.raises(TypeError, match="num_classes must be an integer, got '3'"):
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
