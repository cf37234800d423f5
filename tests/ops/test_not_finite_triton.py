"""docs/not_finite.md, row by row, on every path; those of GPUs in Triton's interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels import (
    MaskFormerCriterion,
    SegmentTargets,
    batch_linear_assignment_with_status,
    focal_dice_loss,
    mask_loss,
    matching_cost,
    use_backend,
)
from mfkernels.integrations import point_sampling
from mfkernels.ops.assignment import STATUS_NAN
from mfkernels.ops.class_loss import class_loss
from mfkernels.ops.class_loss import triton_launch as class_kernels
from mfkernels.ops.focal_dice import triton_launch as focal_dice_kernels
from mfkernels.ops.mask_loss import triton_launch as mask_loss_kernels
from mfkernels.ops.matching_cost import triton_launch as cost_kernels

CASE = Case(layers=1, counts=(3,), queries=5, classes=3, low=(6, 5), size=(6, 5))
BAD = 2
"""The query with what is not finite."""
OPTIONS = (1.0, 20.0, 1.0, 0.25, 2.0)
KINDS = [torch.nan, torch.inf, -torch.inf]
"""Of the value; what is not finite is said by its name in `costs_that_are_nan`."""


def stored(targets: SegmentTargets) -> tuple[Tensor | None, Tensor | None]:
    return targets.label_map, targets.masks


def targets_of(form: str) -> SegmentTargets:
    """Segment 0 has the upper left corner, nobody the lower right one."""
    masks = torch.zeros(3, *CASE.size, dtype=torch.bool)
    masks[0, :3, :3] = masks[1, 3:, :2] = masks[2, :2, 3:] = True
    labels = torch.tensor([0, 2, 1])
    if form == "label map":
        label_map = torch.where(masks.any(0), masks.int().argmax(0), -1)
        return SegmentTargets.from_label_maps(label_map[None], [labels])
    masks[1, 2, 2] = form == "overlapping masks"
    return SegmentTargets.from_masks([masks], [labels])


def cost_of(
    path: str, class_logits: Tensor, embed: Tensor, features: Tensor | None, targets: SegmentTargets
) -> Tensor:
    """`[Q, T]`."""
    if path == "Triton":
        counts = (targets.labels, targets.counts_tensor(), targets.max_count)
        given = (class_logits, embed, features, *stored(targets), *counts)
        return cost_kernels.matching_cost(*given, *OPTIONS)[0, 0]
    if path == "points":
        logits = embed if features is None else torch.einsum("lbqc,bchw->lbqhw", embed, features)
        weights = {"class_weight": 1.0, "mask_weight": 5.0, "dice_weight": 5.0}
        masks, labels = [targets.dense_masks(0)], [targets.labels]
        torch.manual_seed(0)
        return point_sampling.point_matching_cost(
            class_logits[0], logits[0], masks, labels, 500, **weights
        )[0]
    with use_backend(path):
        return matching_cost(class_logits, embed, features, targets)[0, 0]


def spoilt(what: str, value: float, form: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Class logits, embeddings and features, or mask logits and None."""
    class_logits, embed, features = CASE.predictions()
    if what == "class logit":
        class_logits[0, 0, BAD, 1] = value
    elif what == "all class logits":
        class_logits[0, 0, BAD] = value
    elif what == "embedding":
        embed[0, 0, BAD, 3] = value
    elif what == "features":
        features[0, 3, 1, 1] = value
    if form == "factors":
        return class_logits, embed, features
    logits = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    places = {"logit in a segment": (1, 1), "logit in none": (5, 4), "logit of two": (2, 2)}
    if what in places:
        logits[(0, 0, BAD, *places[what])] = value
    return class_logits, logits, None


def costs_that_are_nan(what: str, value: float) -> Tensor:
    expected = torch.zeros(CASE.queries, 3, dtype=torch.bool)
    if what == "features":
        expected[:] = True
    elif what != "class logit" or value != -torch.inf:
        expected[BAD] = True
    return expected


@functools.cache
def cost_of_fine_values(path: str, form: str, segments: str) -> Tensor:
    return cost_of(path, *spoilt("nothing", 0.0, form), targets_of(segments))


CIRCUMSTANCES = [
    *((f"logit {place}", "logits") for place in ("in a segment", "in none", "of two")),
    *((what, "logits") for what in ("class logit", "all class logits")),
    *((what, "factors") for what in ("embedding", "features", "class logit")),
]


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize(("what", "form"), CIRCUMSTANCES)
@pytest.mark.parametrize("segments", ["label map", "disjoint masks", "overlapping masks"])
@pytest.mark.parametrize("path", ["native", "reference", "points", "Triton"])
def test_matching_costs_and_their_status(
    path: str, segments: str, what: str, form: str, value: float
) -> None:
    targets = targets_of(segments)
    cost = cost_of(path, *spoilt(what, value, form), targets)
    expected = costs_that_are_nan(what, value)
    assert torch.equal(cost.isnan(), expected)
    fine = cost_of_fine_values(path, form, segments)
    queries = ~expected.any(1) & (torch.arange(CASE.queries) != BAD)
    torch.testing.assert_close(cost[queries], fine[queries])
    for backend in ("native", "reference"):
        with use_backend(backend):
            assignment, status = batch_linear_assignment_with_status(cost.mT)
        assert bool(status & STATUS_NAN) == bool(expected.any())
        assert BAD not in assignment or not expected.any() or bool(expected.all())


@pytest.mark.parametrize("path", ["native", "reference"])
@pytest.mark.parametrize("value", KINDS)
def test_bad_costs_are_counted(path: str, value: float) -> None:
    class_logits, logits, _ = spoilt("logit in none", value, "logits")
    criterion = MaskFormerCriterion(CASE.classes)
    with use_backend("auto" if path == "native" else path):
        for form in ("label map", "overlapping masks"):
            outputs = {"pred_logits": class_logits[0], "pred_masks": logits[0]}
            losses = criterion(outputs, targets_of(form))
            assert all(loss.isfinite() for loss in losses.values()), "the query is not matched"
    assert criterion.bad_costs == 2


def losses_of_masks(path: str, logits: Tensor, targets: SegmentTargets) -> list[Tensor]:
    """Both losses of query 1 with segment 0 and of `BAD` with segment 2, and the gradients."""
    assignment = torch.tensor([[[1, -1, BAD]]])
    if path != "Triton":
        x = logits.clone().requires_grad_()
        with use_backend(path):
            losses = mask_loss(x, None, targets, assignment)
        gradients = [torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in losses]
        return [*losses, *gradients]
    counts = targets.counts_tensor()
    inputs = (
        logits,
        None,
        *stored(targets),
        counts,
        assignment,
        targets.num_segments,
        *OPTIONS[3:],
    )
    focal, dice, *saved = mask_loss_kernels.mask_loss(*inputs, True)
    gradients = []
    for grads in (
        (torch.ones(1, 1, 3), torch.zeros(1, 1, 3)),
        (torch.zeros(1, 1, 3), focal * 0 + 1),
    ):
        both = (grads[0], grads[1].nan_to_num(1.0))
        gradient, _ = mask_loss_kernels.mask_loss_backward(*both, *saved, *inputs, True, False)
        gradients.append(gradient)
    return [focal.sum(2)[0] / 3, dice.sum(2)[0] / 3, *gradients]


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize(
    ("place", "size"), [((1, 1), (24, 20)), ((5, 4), (13, 11)), ((0, 0), (6, 5))]
)
@pytest.mark.parametrize("path", ["native", "reference", "Triton"])
def test_mask_loss(path: str, place: tuple[int, int], size: tuple[int, int], value: float) -> None:
    masks = torch.rand(3, *size) < 0.4
    targets = SegmentTargets.from_masks([masks], [torch.tensor([0, 2, 1])])
    _, logits, _ = spoilt("nothing", 0.0, "logits")
    logits[(0, 0, BAD, *place)] = value
    *losses, of_focal, of_dice = losses_of_masks(path, logits, targets)
    assert all(loss.isnan().all() for loss in losses)
    for gradient in (of_focal, of_dice):
        assert gradient[(0, 0, BAD, *place)].isnan()
        assert gradient[0, 0, [0, 1, 3, 4]].isfinite().all()


def losses_of_rows(
    path: str, logits: Tensor, targets: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of focal and dice loss, and the gradient of each alone."""
    if path == "Triton":
        options = (targets, 0.25, gamma)
        focal, dice, sums = focal_dice_kernels.focal_dice(logits, *options)
        one, none = torch.ones(len(logits)), torch.zeros(len(logits))
        of_focal, of_dice = (
            focal_dice_kernels.focal_dice_backward(*gradients, sums, logits, *options)
            for gradients in ((one, none), (none, one))
        )
        return focal.sum(), dice.sum(), of_focal, of_dice
    x = logits.clone().requires_grad_()
    with use_backend(path):
        losses = focal_dice_loss(x, targets, 1.0, gamma=gamma)
    of_focal, of_dice = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in losses)
    return losses[0].detach(), losses[1].detach(), of_focal, of_dice


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("path", ["native", "reference", "Triton"])
def test_focal_and_dice_loss(path: str, gamma: float, target: float, value: float) -> None:
    logits, targets = torch.randn(2, 7), torch.rand(2, 7)
    logits[1, 4], targets[1, 4] = value, target
    focal, dice, of_focal, of_dice = losses_of_rows(path, logits, targets, gamma)
    infinite = value == value
    assert focal.isnan()
    assert dice.isfinite() == infinite
    for gradient in (of_focal, of_dice):
        assert gradient[0].isfinite().all(), "of another mask"
    others = [0, 1, 2, 3, 5, 6]
    assert of_focal[1, others].isfinite().all(), "the focal loss has no sums"
    if infinite and gamma == 0:
        weight = 0.25 * target + 0.75 * (1 - target)
        expected = torch.tensor(weight * ((value > 0) - target) / 7)
        torch.testing.assert_close(of_focal[1, 4], expected)
    else:
        assert of_focal[1, 4].isnan()
    if infinite:
        assert of_dice[1].isfinite().all()
        assert of_dice[1, 4].abs() < 1e-30
    else:
        assert of_dice[1].isnan().all()


@pytest.mark.parametrize("path", ["reference", "Triton"])
@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        *((entry, value, torch.nan) for entry in (0, 3) for value in (torch.nan, torch.inf)),
        (0, -torch.inf, 0.0),
        (3, -torch.inf, torch.inf),
    ],
    ids=str,
)
def test_class_loss(path: str, entry: int, value: float, expected: float) -> None:
    """Query `BAD` has no object, class 3; `expected` is what the value adds to the loss."""
    class_logits, *_ = CASE.predictions()
    class_logits[0, 0, BAD, entry] = value
    targets, assignment = targets_of("label map"), torch.tensor([[[1, -1, 0]]])
    entropies: Callable[[Tensor], Tensor] = lambda x: -x.log_softmax(-1)[0, 0]  # noqa: E731
    labels, weights = torch.tensor([1, 0, 3, 3, 3]), torch.tensor([1, 1, 0.1, 0.1, 0.1])
    truth = (weights * entropies(class_logits).gather(1, labels[:, None])[:, 0]).sum()
    if path == "Triton":
        counts = (targets.labels, targets.counts_tensor(), assignment)
        loss = class_kernels.class_loss(class_logits, *counts, 0.1)[0]
    else:
        loss = class_loss(class_logits, targets, assignment, 0.1)[0]
    torch.testing.assert_close(loss[0], truth, equal_nan=True)
    assert bool(truth.isnan()) == (expected != expected)
    assert bool(truth.isinf()) == (expected == torch.inf)
