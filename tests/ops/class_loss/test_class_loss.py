"""The class loss: scalar arithmetic in float64, precision, gradients, empty sizes, odd labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.strategies import Case, cases
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from mfkernels import SegmentTargets, backend, use_backend
from mfkernels.ops.class_loss import class_loss

NO_OBJECT_WEIGHT = 0.1
CASE = Case(layers=3, counts=(3, 0, 5), queries=6)


def matches(case: Case) -> Tensor:
    """`[L, B, T]`: distinct queries in no order, −1 where they do not suffice."""
    generator = torch.Generator().manual_seed(case.seed + 4)
    longest = max(case.counts, default=0)
    assignment = torch.full((case.layers, len(case.counts), longest), -1)
    for row in assignment.flatten(0, 1):
        queries = torch.randperm(case.queries, generator=generator)[:longest]
        row[: len(queries)] = queries
    for image, count in enumerate(case.counts):
        assignment[:, image, count:] = -1
    return assignment


def truth(logits: Tensor, case: Case, assignment: Tensor) -> tuple[list[float], list[float]]:
    """Both sums of each layer, one query at a time."""
    losses, weights = [], []
    for layer in range(case.layers):
        loss = weight = 0.0
        for image, labels in enumerate(case.labels()):
            classes = [case.classes] * case.queries
            for segment, label in enumerate(labels.tolist()):
                query = int(assignment[layer, image, segment])
                if query >= 0:
                    classes[query] = label
            for query, label in enumerate(classes):
                row = logits[layer, image, query].tolist()
                largest = max(row)
                total = sum(math.exp(x - largest) for x in row)
                of_query = NO_OBJECT_WEIGHT if label == case.classes else 1.0
                loss += of_query * (largest + math.log(total) - row[label])
                weight += of_query
        losses.append(loss)
        weights.append(weight)
    return losses, weights


@given(case=cases)
@settings(deadline=None)
def test_against_scalar_arithmetic(case: Case) -> None:
    logits = case.predictions(torch.float64)[0]
    assignment = matches(case)
    loss, weight = class_loss(logits, case.targets(), assignment, NO_OBJECT_WEIGHT)
    expected_loss, expected_weight = truth(logits, case, assignment)
    assert loss.dtype == weight.dtype == torch.float64
    assert loss.tolist() == pytest.approx(expected_loss, rel=1e-12)
    assert weight.tolist() == pytest.approx(expected_weight, rel=1e-12)


def plain(logits: Tensor, case: Case, assignment: Tensor) -> Tensor:
    """`[L]`: PyTorch's cross-entropy in the precision of `logits`."""
    target = torch.full(logits.shape[:3], case.classes)
    for image, labels in enumerate(case.labels()):
        for layer in range(case.layers):
            query = assignment[layer, image, : len(labels)]
            target[layer, image, query[query >= 0]] = labels[query >= 0]
    weight = logits.new_ones(case.classes + 1)
    weight[-1] = NO_OBJECT_WEIGHT
    losses = F.cross_entropy(logits.flatten(0, 2), target.flatten(), weight, reduction="none")
    return losses.view(case.layers, -1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_and_gradient_are_those_of_plain_pytorch(dtype: torch.dtype) -> None:
    """Half precision is computed in float32, so the error is that of float32 on the same values."""
    case = replace(CASE, queries=40, classes=150)
    given_logits = (5 * case.predictions()[0]).to(dtype)
    assignment, factors = matches(case), torch.tensor([1.0, -2.0, 0.5])

    def results(precision: torch.dtype, ours: bool) -> tuple[Tensor, Tensor]:
        logits = given_logits.to(precision).requires_grad_()
        if ours:
            loss = class_loss(logits, case.targets(), assignment, NO_OBJECT_WEIGHT)[0]
        else:
            loss = plain(logits, case, assignment)
        (gradient,) = torch.autograd.grad((loss * factors).sum(), logits)
        assert gradient.dtype == precision
        return loss.detach().double(), gradient.double()

    exact, in_float32 = results(torch.float64, ours=False), results(torch.float32, ours=False)
    rounding = [3e-7, torch.finfo(dtype).eps]
    for value, peer, true, slack in zip(
        results(dtype, ours=True), in_float32, exact, rounding, strict=True
    ):
        assert (value - true).norm() <= 2 * (peer - true).norm() + slack * true.norm()


def test_gradients() -> None:
    logits = CASE.predictions(torch.float64, grad=True)[0]
    assignment = matches(CASE)
    assert torch.autograd.gradcheck(
        lambda x: class_loss(x, CASE.targets(), assignment, NO_OBJECT_WEIGHT)[0], logits
    )


def test_weights_have_no_gradient() -> None:
    logits = CASE.predictions(grad=True)[0]
    _, weight = class_loss(logits, CASE.targets(), matches(CASE), NO_OBJECT_WEIGHT)
    assert not weight.requires_grad


@pytest.mark.parametrize(
    "case",
    [
        Case(layers=0),
        Case(queries=0),
        Case(counts=(0, 0)),
        Case(counts=(8, 2), queries=3),
        Case(classes=1),
    ],
    ids=["layers", "queries", "segments", "more segments than queries", "one class"],
)
def test_little_or_nothing(case: Case) -> None:
    logits = case.predictions(grad=True)[0]
    assignment = matches(case)
    loss, weight = class_loss(logits, case.targets(), assignment, NO_OBJECT_WEIGHT)
    expected_loss, expected_weight = truth(logits.detach(), case, assignment)
    assert loss.tolist() == pytest.approx(expected_loss, rel=1e-5)
    assert weight.tolist() == pytest.approx(expected_weight, rel=1e-6)
    loss.sum().backward()
    assert logits.grad is not None


@pytest.mark.parametrize("wrong", [-1, CASE.classes, 255])
def test_a_void_or_impossible_label_makes_every_loss_nan(wrong: int) -> None:
    logits, targets = CASE.predictions()[0], CASE.targets()
    labels = targets.labels.clone()
    labels[-1] = wrong
    given_targets = SegmentTargets(labels, targets.counts, targets.label_map)
    loss, weight = class_loss(logits, given_targets, matches(CASE), NO_OBJECT_WEIGHT)
    assert loss.isnan().all()
    assert weight.isfinite().all()


def test_a_query_without_weight_counts_for_nothing() -> None:
    logits = CASE.predictions()[0]
    nothing = torch.full_like(matches(CASE), -1)
    loss, weight = class_loss(logits, CASE.targets(), nothing, 0.0)
    assert loss.tolist() == weight.tolist() == [0.0] * CASE.layers


def test_large_logits_do_not_overflow() -> None:
    logits = 1e4 * CASE.predictions()[0]
    loss, _ = class_loss(logits, CASE.targets(), matches(CASE), NO_OBJECT_WEIGHT)
    assert loss.isfinite().all()


@pytest.mark.parametrize(("asked", "served"), [("reference", "reference"), ("native", "pytorch")])
def test_pytorch_serves_it_on_a_cpu(asked: backend.Backend, served: str) -> None:
    with use_backend(asked):
        assert backend.select("class_loss", torch.device("cpu")) == served
        loss, _ = class_loss(CASE.predictions()[0], CASE.targets(), matches(CASE), 0.1)
    assert loss.isfinite().all()
