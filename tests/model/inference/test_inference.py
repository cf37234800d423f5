from __future__ import annotations

import math

import pytest
import torch
from helpers.recipes import TINY
from torch.nn import functional as F

import mfkernels
from maskformer.config.load import parse_config
from maskformer.errors import ConfigError
from maskformer.evaluation.figures import metrics_to_json
from maskformer.inference.prediction import Prediction
from maskformer.modeling.criterion import PerPixelCriterion, build_criterion, class_maps
from maskformer.modeling.outputs import Frames, PixelOutputs
from mfkernels import SegmentTargets

FRAMES = Frames((32, 32), [(32, 24), (20, 32)], [(64, 48), (10, 16)])


def test_per_pixel_maps_are_cropped_and_resized() -> None:
    logits = torch.randn(1, 2, 5, 8, 8)
    maps = PixelOutputs(pixel_logits=logits).semantic(FRAMES)
    assert [tuple(m.shape) for m in maps] == FRAMES.sizes
    full = F.interpolate(logits[-1], (32, 32), mode="bilinear")[1:, :, :20]
    expected = F.interpolate(full, (10, 16), mode="bilinear")[0].argmax(0)
    assert torch.equal(maps[1], expected)


def test_per_pixel_logits_are_enlarged_by_their_stride() -> None:
    """An input of 30x22 that is not padded has logits of 8x6: 32x24 pixels, of which 30x22 count.
    Resizing to the input instead would shift every pixel by up to 2.
    """
    logits = torch.randn(1, 1, 3, 8, 6)
    [found] = PixelOutputs(pixel_logits=logits).semantic(Frames((30, 22), [(30, 22)], [(30, 22)]))
    full = F.interpolate(logits[0], scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(found, full[0, :, :30, :22].argmax(0))
    squeezed = F.interpolate(logits[0], (30, 22), mode="bilinear", align_corners=False)
    assert not torch.equal(found, squeezed[0].argmax(0))


def test_a_per_pixel_model_gives_one_segment_per_class() -> None:
    logits = torch.randn(1, 2, 5, 8, 8)
    maps = PixelOutputs(pixel_logits=logits).semantic(FRAMES)
    found = PixelOutputs(pixel_logits=logits).panoptic(FRAMES, [1])
    for classes, (ids, segments) in zip(maps, found, strict=True):
        assert ids.dtype == torch.int32
        table = {s["id"]: s["category_id"] for s in segments}
        assert torch.equal(
            torch.tensor([table[i] for i in ids.flatten().tolist()]), classes.ravel()
        )
        assert all(s["isthing"] == (s["category_id"] == 1) for s in segments)


def test_per_pixel_loss_is_the_cross_entropy_of_labelled_pixels() -> None:
    segments = torch.tensor([[[0, 0, 1, -1]] * 4, [[-1, 0, 0, 0]] * 4])
    targets = SegmentTargets.from_label_maps(segments, [torch.tensor([2, 0]), torch.tensor([1])])
    classes = torch.tensor([[[2, 2, 0, -1]] * 4, [[-1, 1, 1, 1]] * 4])
    assert torch.equal(class_maps(targets), classes)
    logits = torch.randn(3, 2, 3, 2, 2, requires_grad=True)
    criterion = PerPixelCriterion()
    losses = criterion({"pixel_logits": logits}, targets)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_0", "loss_sem_seg_1"}
    full = F.interpolate(logits[-1], (4, 4), mode="bilinear")
    expected = F.cross_entropy(full, classes, ignore_index=-1)
    torch.testing.assert_close(losses["loss_sem_seg"], expected)
    criterion.total(losses).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("low", [(17, 11), (16, 10)])
def test_per_pixel_loss_is_that_of_the_predicted_scores(low: tuple[int, int]) -> None:
    """Also if the stride does not divide the size, which backbones round either up or down."""
    size = (65, 42)
    logits = torch.randn(1, 1, 3, *low)
    view = PixelOutputs(pixel_logits=logits).view(size, size, flipped=False)
    scores = PixelOutputs.scores(view, size, False, slice(None))
    classes = torch.randint(0, 3, (1, *size))
    targets = SegmentTargets.from_label_maps(classes, [torch.arange(3)])
    found = PerPixelCriterion()({"pixel_logits": logits}, targets)["loss_sem_seg"]
    torch.testing.assert_close(found, F.cross_entropy(scores[None], classes))


def test_per_pixel_loss_with_class_weights() -> None:
    classes = torch.tensor([[[0, 2], [-1, 1]]])
    logits = torch.randn(1, 1, 3, 2, 2)
    targets = SegmentTargets.from_label_maps(
        torch.tensor([[[0, 2], [-1, 1]]]), [torch.tensor([0, 1, 2])]
    )
    weights = [0.5, 2.0, 0.0]
    found = PerPixelCriterion(weights)({"pixel_logits": logits}, targets)["loss_sem_seg"]
    expected = F.cross_entropy(logits[-1], classes, torch.tensor(weights), ignore_index=-1)
    torch.testing.assert_close(found, expected)
    unweighted = PerPixelCriterion([0.0] * 3)({"pixel_logits": logits}, targets)
    assert unweighted["loss_sem_seg"] == 0


def test_per_pixel_loss_without_labels_is_zero_and_attached() -> None:
    targets = SegmentTargets.from_label_maps(torch.full((1, 4, 4), -1), [torch.zeros(0).long()])
    logits = torch.randn(1, 1, 3, 2, 2, requires_grad=True)
    loss = PerPixelCriterion()({"pixel_logits": logits}, targets)["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_per_pixel_loss_refuses_overlapping_masks() -> None:
    targets = SegmentTargets.from_masks([torch.ones(1, 4, 4)], [torch.tensor([0])])
    with pytest.raises(ValueError, match="from_label_maps"):
        class_maps(targets)


def test_a_criterion_needs_the_number_of_classes() -> None:
    with pytest.raises(ValueError, match=r"model\.num_classes"):
        build_criterion(parse_config(TINY))


def test_fixed_matching_needs_a_query_per_class() -> None:
    values = {**TINY, "criterion": {"matching": "fixed"}}
    model = {**TINY["model"], "num_classes": 3}
    with pytest.raises(ConfigError, match=r"criterion\.matching.*queries is \d+; .* classes, 3"):
        build_criterion(parse_config({**values, "model": model}))
    model["decoder"] = {**model["decoder"], "queries": 3}
    criterion = build_criterion(parse_config({**values, "model": model}))
    assert isinstance(criterion, mfkernels.MaskFormerCriterion)
    assert criterion.matching == "fixed"


def test_figures_that_do_not_exist_become_null() -> None:
    text = metrics_to_json({"miou": math.nan, "pq": 0.5, "per_class": {"iou": [1.0, math.nan]}})
    assert '"miou": null' in text
    assert "NaN" not in text


def test_a_picture_needs_a_prediction() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        Prediction().segmentation()
