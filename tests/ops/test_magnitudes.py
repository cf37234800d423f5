"""Values of any magnitude, infinities and NaN: kernels are as exact as plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from helpers.strategies import Case, assert_as_exact, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfkernels import (
    SegmentTargets,
    batch_linear_assignment_with_status,
    focal_dice_loss,
    mask_loss,
    matching_cost,
    sigmoid_focal_loss,
    use_backend,
)

SHAPE = (3, 4)
quick = settings(max_examples=60, deadline=None)


@given(
    tensors(1, 1, 3, *SHAPE), tensors(1, 1, 3, 4), st.booleans(), st.sampled_from([2.0, 0.0, 1.5])
)
@quick
def test_costs(logits: Tensor, class_logits: Tensor, overlap: bool, gamma: float) -> None:
    case = Case(layers=1, counts=(3,), queries=3, classes=3, low=SHAPE, size=SHAPE, overlap=overlap)
    targets = case.targets()
    ours = matching_cost(class_logits, logits, None, targets, gamma=gamma)
    with use_backend("reference"):
        plain = matching_cost(class_logits, logits, None, targets, gamma=gamma)
        truth = matching_cost(class_logits.double(), logits.double(), None, targets, gamma=gamma)
    assert_as_exact(ours, plain, truth, 22.0)
    not_finite = ~logits.isfinite().flatten(3).all(-1)
    assert ours[not_finite].isnan().all()


@given(tensors(2, 7), st.sampled_from([0.0, 0.5, 2.0]), st.booleans())
@quick
def test_focal_and_dice_losses_and_gradients(logits: Tensor, gamma: float, soft: bool) -> None:
    targets = torch.rand(2, 7) if soft else (torch.rand(2, 7) < 0.5).float()
    results = []
    for backend, dtype in (("auto", 32), ("reference", 32), ("reference", 64)):
        x = logits.to(getattr(torch, f"float{dtype}")).requires_grad_()
        with use_backend(backend):
            losses = focal_dice_loss(x, targets, gamma=gamma)
        gradients = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in losses]
        results.append([*(y.detach() for y in losses), *gradients])
    for ours, plain, truth in zip(*results, strict=True):
        assert_as_exact(ours, plain, truth)


@given(tensors(1, 1, 3, *SHAPE), st.booleans())
@quick
def test_mask_losses(logits: Tensor, overlap: bool) -> None:
    """At the size of the logits, where no interpolation cancels what is large."""
    case = Case(layers=1, counts=(2,), queries=3, classes=3, low=SHAPE, size=SHAPE, overlap=overlap)
    targets, assignment = case.targets(), torch.tensor([[[2, 0]]])
    results = []
    for backend, dtype in (("auto", 32), ("reference", 32), ("reference", 64)):
        x = logits.to(getattr(torch, f"float{dtype}")).requires_grad_()
        with use_backend(backend):
            losses = torch.stack(mask_loss(x, None, targets, assignment))
        results.append((losses.detach(), torch.autograd.grad(losses.sum(), x)[0]))
    (ours, of_ours), (plain, of_plain), (truth, of_truth) = results
    assert_as_exact(ours, plain, truth)
    finite = logits.isfinite().flatten(3).all(-1)
    assert_as_exact(of_ours[finite], of_plain[finite], of_truth[finite])
    assert of_ours[:, :, [0, 2]][~finite[:, :, [0, 2]]].isnan().flatten(1).any(1).all()


@given(tensors(2, 3, 4))
@quick
def test_assignments(cost: Tensor) -> None:
    results = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            assignment, status = batch_linear_assignment_with_status(cost)
        edges = cost.double().gather(2, assignment[..., None])[..., 0]
        present = edges.isfinite()
        results.append((status, (~present).sum(1), edges.where(present, 0).sum(1)))
    (status, missing, total), (of_plain, missing_of_plain, total_of_plain) = results
    assert torch.equal(status, of_plain)
    assert torch.equal(missing, missing_of_plain)
    scale = cost.double().nan_to_num(0, 0, 0).abs().flatten(1).amax(1)
    assert ((total - total_of_plain).abs() <= 1e-12 * scale).all()


def test_right_pixels_with_large_logits_change_no_matching() -> None:
    """In a segment that overlaps another, and in one that does not."""
    y = torch.zeros(2, 6, 6, dtype=torch.bool)
    y[0, :3], y[1, 2:] = True, True
    for masks in (y, y & ~y.flip(0)):
        targets = SegmentTargets.from_masks([masks], [torch.tensor([0, 1])])
        for size in (1e3, 65504.0, 1e8, 1e30):
            logits, classes = torch.randn(1, 4, 6, 6), torch.zeros(1, 4, 3)
            logits[0, :2, 0, 0], logits[0, 2:, 5, 5] = size, size
            ours = matching_cost(classes, logits, None, targets)
            with use_backend("reference"):
                plain = matching_cost(classes, logits, None, targets)
                truth = matching_cost(classes.double(), logits.double(), None, targets)
            assert_as_exact(ours, plain, truth)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_beyond_0_and_1(gamma: float, dtype: torch.dtype) -> None:
    """As bicubic interpolation makes them: the focal loss is torchvision's, with its gradient."""
    logits, targets = 6 * torch.randn(2, 500).to(dtype), 1.8 * torch.rand(2, 500).to(dtype) - 0.4
    logits[:, :2], targets[:, :2] = 12.0, torch.tensor([1.05, 255.0])
    results = []
    for backend, x in (("auto", logits), ("reference", logits), ("reference", logits.double())):
        x = x.clone().requires_grad_()
        with use_backend(backend):
            losses = sigmoid_focal_loss(x, targets.to(x.dtype), gamma=gamma)
            mean = focal_dice_loss(x, targets.to(x.dtype), gamma=gamma)[0]
        gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (losses, mean)]
        results.append([losses.detach(), mean.detach(), *gradients])
    for ours, plain, truth in zip(*results, strict=True):
        assert_as_exact(ours, plain, truth)


@pytest.mark.parametrize("size", [1e30, 1e37, 1e38, 1.8e38])
def test_the_largest_logits(size: float) -> None:
    logits = torch.tensor([size, -size, 90.0, -90.0, 1.0])
    for target in (0.0, 1.0):
        results = []
        for backend in ("auto", "reference"):
            x = logits.clone().requires_grad_()
            with use_backend(backend):
                losses = sigmoid_focal_loss(x, torch.full_like(x, target))
            results.append((losses.detach(), torch.autograd.grad(losses.sum(), x)[0]))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-37)
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :3], masks[1, 3:] = True, True
    low = torch.randn(1, 3, 6, 6)
    low[0, 0, 0, 0] = size
    for overlap in (False, True):
        masks[1, 2] |= overlap
        targets = SegmentTargets.from_masks([masks], [torch.tensor([0, 1])])
        costs = []
        for backend in ("auto", "reference"):
            with use_backend(backend):
                costs.append(matching_cost(torch.zeros(1, 3, 3), low, None, targets))
        torch.testing.assert_close(*costs, rtol=1e-5, atol=1e-6)
