"""Values of any magnitude, infinities and NaN: kernels are as exact as plain PyTorch."""

from __future__ import annotations

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
