"""Tensors and settings that are not the usual ones: subclasses, inference mode, meta, defaults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

import mfkernels as mfk
from mfkernels import MaskFormerCriterion, SegmentTargets, use_backend
from mfkernels.distributed import mean_num_masks

tv_tensors = pytest.importorskip("torchvision.tv_tensors")

CASE = Case(counts=(2, 1), queries=3, low=(3, 4), size=(6, 5))
CLASS_LOGITS, EMBED, FEATURES = CASE.predictions()
ASSIGNMENT = torch.tensor([[[0, 2], [1, -1]], [[1, -1], [2, -1]]])
OUTPUTS = {"class_logits": CLASS_LOGITS, "mask_embed": EMBED, "pixel_features": FEATURES}
POINTS = torch.rand(2, 6, 2)
SUBCLASSES: list[Callable[[Tensor], Tensor]] = [
    tv_tensors.Mask,
    lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
]


@pytest.fixture
def flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(params=["reference", "auto"])
def asked_for(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("subclass", SUBCLASSES)
@pytest.mark.usefixtures("asked_for")
def test_values_of_subclasses_are_checked(subclass: Callable[[Tensor], Tensor]) -> None:
    labels = [torch.tensor([0, 1])]
    with pytest.raises(ValueError, match=r"masks\[0\] must hold 0 and 1 only"):
        SegmentTargets.from_masks([subclass(torch.full((2, 3, 3), 0.5))], labels)
    with pytest.raises(ValueError, match="holds segment index 8"):
        SegmentTargets(labels[0], (2,), label_map=subclass(torch.full((1, 3, 3), 8).short()))
    with pytest.raises(ValueError, match="labels must be in"):
        SegmentTargets.from_masks([torch.ones(2, 3, 3)], [subclass(labels[0])]).check_labels(1)
    wrong = subclass(ASSIGNMENT - 4)
    with pytest.raises(ValueError, match=r"assignment must hold query indices .* got -5"):
        mfk.mask_loss(EMBED, FEATURES, CASE.targets(), wrong)
    masks = [subclass(mask) for mask in CASE.masks()]
    targets = SegmentTargets.from_masks(masks, [subclass(x) for x in CASE.labels()])
    losses = mfk.mask_loss(EMBED, FEATURES, targets, subclass(ASSIGNMENT))
    expected = mfk.mask_loss(EMBED, FEATURES, CASE.targets(), ASSIGNMENT)
    torch.testing.assert_close(losses, expected)


def test_values_of_fake_tensors_are_not_asked_for() -> None:
    with torch._subclasses.FakeTensorMode():
        targets = SegmentTargets.from_masks([torch.empty(2, 3, 3)], [torch.tensor([0, 1])])
        assert targets._label_limits is None
        # Nor those of real ones, which are made fake in between.
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        embed = mode.from_tensor(EMBED)
        assert mfk.mask_loss(embed, FEATURES, CASE.targets(), ASSIGNMENT)[0].shape == (2,)


@pytest.mark.usefixtures("asked_for")
def test_made_in_inference_mode() -> None:
    """Pseudo-labels, matchings and frozen features, for which autograd has no place."""
    with torch.inference_mode():
        masks, labels = [m.clone() for m in CASE.masks()], [x.clone() for x in CASE.labels()]
        made = [SegmentTargets.from_masks(masks, labels), CASE.targets()]
        assignment, features, points = ASSIGNMENT.clone(), FEATURES.clone(), POINTS.clone()
        number, soft = torch.tensor(3.0), torch.rand(2, 12)
    for targets in made:
        embed = EMBED.clone().requires_grad_()
        losses = mfk.mask_loss(embed, features, targets, assignment, num_masks=number)
        torch.stack(losses).sum().backward()
        assert embed.grad is not None
        expected = EMBED.clone().requires_grad_()
        targets = CASE.targets()
        losses = mfk.mask_loss(expected, FEATURES, targets, ASSIGNMENT, num_masks=3)
        torch.stack(losses).sum().backward()
        torch.testing.assert_close(embed.grad, expected.grad)
        x = torch.randn(2, 3, 4, requires_grad=True)
        given = [
            *mfk.focal_dice_loss(x.flatten(1), soft, number),
            *mfk.point_loss(x, masks[0], points, number),
            mfk.sigmoid_focal_loss(x.flatten(1), soft).sum(),
            mfk.sample_points(x, points).sum(),
            mfk.mask_logits(embed, features).sum(),
        ]
        torch.stack(given).sum().backward()
    outputs = {**OUTPUTS, "mask_embed": EMBED.clone().requires_grad_()}
    criterion = MaskFormerCriterion(CASE.classes)
    criterion.total(criterion({**outputs, "pixel_features": features}, made[0])).backward()


def calls() -> dict[str, Callable[[], Any]]:
    targets, masks, labels = CASE.targets(), CASE.masks(), CASE.labels()
    shapes = (CLASS_LOGITS[0], EMBED[0], FEATURES, (5, 7))
    return {
        "matching_cost": lambda: mfk.matching_cost(CLASS_LOGITS, EMBED, FEATURES, targets),
        "mask_loss": lambda: mfk.mask_loss(EMBED, FEATURES, targets, ASSIGNMENT),
        "criterion": lambda: list(MaskFormerCriterion(CASE.classes)(OUTPUTS, targets).values()),
        "weights": lambda: list(
            MaskFormerCriterion(CASE.classes, class_weights=[1, 2, 3, 4])(OUTPUTS, targets).values()
        ),
        "point_loss": lambda: mfk.point_loss(FEATURES[:, 0], FEATURES[:, 1].sigmoid(), POINTS),
        "assignment": lambda: mfk.batch_linear_assignment(CLASS_LOGITS, row_counts=[[1, 2]]),
        "semantic": lambda: mfk.semantic_segmentation(*shapes),
        "panoptic": lambda: mfk.panoptic_segmentation(*shapes, thing_classes={0})[0][0],
        # With more pixels than bfloat16 counts
        "instances": lambda: mfk.instance_segmentation(*shapes[:3], (50, 70), top_k=2)[0].scores,
        "targets": lambda: SegmentTargets.from_masks(masks, labels).padded_labels(),
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.usefixtures("asked_for")
def test_default_dtype_and_device_change_nothing(name: str) -> None:
    call = calls()[name]
    expected = call()
    with torch.device("meta"):
        torch.testing.assert_close(call(), expected)
    try:
        torch.set_default_dtype(torch.bfloat16)
        torch.testing.assert_close(call(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_number_of_masks_is_exact_with_any_default_dtype() -> None:
    targets = SegmentTargets.from_masks([torch.ones(301, 1, 1)], [torch.zeros(301).long()])
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert mean_num_masks(targets).item() == 301
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("asked_for")
def test_meta_tensors_give_shapes() -> None:
    class_logits, embed, features, assignment, points = (
        tensor.to("meta") for tensor in (CLASS_LOGITS, EMBED, FEATURES, ASSIGNMENT, POINTS)
    )
    targets = CASE.targets().to("meta")
    shapes = (class_logits[0], embed[0], features, (5, 7))
    assert mfk.semantic_segmentation(*shapes).shape == (2, 5, 7)
    [first, _] = mfk.instance_segmentation(*shapes, top_k=4)
    assert [x.shape for x in first] == [(4, 5, 7), (4,), (4,), (4, 4)]
    assert mfk.mask_logits(embed, features).shape == (2, 2, 3, 3, 4)
    assert mfk.matching_cost(class_logits, embed, features, targets).shape == (2, 2, 3, 2)
    losses = mfk.mask_loss(embed.requires_grad_(), features, targets, assignment)
    torch.stack(losses).sum().backward()
    assert embed.grad is not None
    assert embed.grad.shape == embed.shape
    assert mfk.focal_dice_loss(features, features)[0].shape == ()
    assert mfk.sigmoid_focal_loss(features, features).shape == features.shape
    assert mfk.point_loss(features[:, 0], features[:, 1], points)[1].shape == ()
    assert mfk.sample_points(features[:, 0], points).shape == (2, 6)
    assert mfk.batch_linear_assignment(class_logits, col_counts=[[2], [1]]).shape == (2, 2, 3)
    outputs = {"class_logits": class_logits, "mask_embed": embed, "pixel_features": features}
    criterion = MaskFormerCriterion(CASE.classes).to("meta")
    assert {loss.shape for loss in criterion(outputs, targets).values()} == {()}


def test_the_count_of_bad_costs_is_of_this_process() -> None:
    """DistributedDataParallel copies the buffers of the first process to all others."""
    criterion = MaskFormerCriterion(CASE.classes)
    assert "bad_costs" not in dict(criterion.named_buffers())
    criterion({**OUTPUTS, "class_logits": CLASS_LOGITS * torch.nan}, CASE.targets())
    assert criterion.bad_costs == 4
    assert copy.deepcopy(criterion).bad_costs == 4


def test_a_criterion_goes_on_after_shapes_were_asked_for() -> None:
    criterion = MaskFormerCriterion(CASE.classes)
    criterion({name: x.to("meta") for name, x in OUTPUTS.items()}, CASE.targets().to("meta"))
    assert criterion(OUTPUTS, CASE.targets())["loss_ce"].isfinite()
    assert criterion.bad_costs == 0
    with torch.device("meta"):
        criterion = MaskFormerCriterion(CASE.classes)
    assert criterion.to_empty(device="cpu").bad_costs == 0


def test_a_criterion_that_inference_mode_made_or_moved() -> None:
    bad = {**OUTPUTS, "mask_embed": EMBED * torch.nan}
    with torch.inference_mode():
        criterion = MaskFormerCriterion(CASE.classes)
        criterion(bad, CASE.targets())
    criterion(bad, CASE.targets())
    assert criterion.bad_costs == 8


def test_a_count_has_no_subclass() -> None:
    class Named(Tensor):
        pass

    criterion = MaskFormerCriterion(CASE.classes)
    criterion({name: x.as_subclass(Named) for name, x in OUTPUTS.items()}, CASE.targets())
    assert type(criterion.bad_costs) is Tensor
    assert copy.deepcopy(criterion).bad_costs == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.usefixtures("flushed", "asked_for")
def test_subnormal_float16_is_no_denormal_float32(channels_last: bool) -> None:
    """PyTorch flushes float32 only; 1e-5 is a normal float32, but not a normal float16."""
    embed = torch.full((1, 1, 3, 16), 1e-5).half()
    features = torch.full((1, 16, 4, 4), 1e3).half()
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    logits = mfk.mask_logits(embed, features)
    torch.testing.assert_close(
        logits.float(), torch.full_like(logits, 0.16).float(), rtol=1e-2, atol=0
    )
    cost = torch.tensor([[[4.0, 1, 3], [2, 0, 5], [3, 2, 2]]]) * 1e-6
    assert mfk.batch_linear_assignment(cost.half()).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("semantic", [False, True])
@pytest.mark.usefixtures("asked_for")
def test_inference_has_no_forward_derivative(semantic: bool) -> None:
    def scores(embed: Tensor) -> Tensor:
        given = CLASS_LOGITS[0], embed, FEATURES, (6, 5)
        if semantic:
            found = mfk.semantic_segmentation(*given, return_scores=True)[1]
            assert isinstance(found, Tensor)
            return found
        return mfk.instance_segmentation(*given)[0].scores

    value, derivative = torch.func.jvp(scores, (EMBED[0],), (EMBED[0],))
    if semantic:  # in plain PyTorch inside of jvp, and by a kernel outside
        torch.testing.assert_close(value, scores(EMBED[0]), rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(value, scores(EMBED[0]))
    assert not derivative.any()
