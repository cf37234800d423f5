"""Focal and dice loss of matched masks: restatement, float64, gradients, odd sizes, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from strategies import Case, cases
from torch import Tensor
from torch.nn import functional as F

from mfkernels import SegmentTargets, focal_dice_loss, mask_logits, mask_loss
from mfkernels.reference import mask_loss as reference


def random_assignment(case: Case) -> Tensor:
    """`[L, B, T]`: distinct queries, now and then none."""
    generator = torch.Generator().manual_seed(case.seed + 4)
    most = max(case.counts)
    assignment = torch.full((case.layers, len(case.counts), most), -1)
    for layer in range(case.layers):
        for image, count in enumerate(case.counts):
            queries = torch.randperm(max(case.queries, count), generator=generator)[:count]
            assignment[layer, image, :count] = queries.where(queries < case.queries, -1)
    return assignment


def restated(
    logits: Tensor, case: Case, assignment: Tensor, num_masks: float, **options: float
) -> tuple[Tensor, Tensor]:
    """All matched masks of a layer at once, upsampled and compared; plain autograd."""
    rows: list[tuple[Tensor, Tensor]] = []
    for layer in range(case.layers):
        picked, masks = [logits[layer, 0, :0]], [torch.zeros(0, *case.size, dtype=torch.bool)]
        for image, image_masks in enumerate(case.masks()):
            for segment, query in enumerate(assignment[layer, image, : len(image_masks)]):
                if query >= 0:
                    picked.append(logits[layer, image, query][None])
                    masks.append(image_masks[segment][None])
        upsampled = F.interpolate(
            torch.cat(picked)[:, None], case.size, mode="bilinear", align_corners=False
        )[:, 0]
        rows.append(focal_dice_loss(upsampled, torch.cat(masks), num_masks, **options))
    loss_mask, loss_dice = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return loss_mask, loss_dice


@given(cases)
@settings(max_examples=60, deadline=None)
def test_equals_the_restatement_with_its_gradients(case: Case) -> None:
    assignment = random_assignment(case)
    weight = torch.rand(2, case.layers, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for ours in (True, False):
        _, embed, features = case.predictions(torch.float64, grad=True)
        if ours:
            losses = mask_loss(embed, features, case.targets(), assignment, num_masks=3)
        else:
            losses = restated(mask_logits(embed, features), case, assignment, 3)
        (torch.stack(losses) * weight).sum().backward()
        gradients = [tensor.grad for tensor in (embed, features)]
        results.append([*losses, *(g for g in gradients if g is not None)])
    assert len(results[0]) == 4
    for ours_part, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours_part, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gradcheck(dense: bool, gamma: float) -> None:
    case = Case(counts=(2, 1), queries=3, channels=2, low=(2, 3), size=(5, 7))
    _, embed, features = case.predictions(torch.float64, grad=True)
    assignment = random_assignment(case)

    def losses(*masks: Any) -> tuple[Tensor, Tensor]:
        embed, features = masks if len(masks) == 2 else (masks[0], None)
        return mask_loss(embed, features, case.targets(), assignment, alpha=0.4, gamma=gamma)

    if dense:
        logits = mask_logits(embed, features).detach().requires_grad_()
        assert torch.autograd.gradcheck(losses, (logits,))
    else:
        assert torch.autograd.gradcheck(losses, (embed, features))


@pytest.mark.parametrize("pixels", [1, 500, 10**6])
def test_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    case = Case(counts=(5, 3))
    _, embed, features = case.predictions(grad=True)
    expected = restated(mask_logits(embed, features), case, random_assignment(case), 8)
    monkeypatch.setattr(reference, "PIXELS_AT_ONCE", pixels)
    losses = mask_loss(embed, features, case.targets(), random_assignment(case))
    torch.testing.assert_close(losses, expected)


def test_float32_is_as_good_as_plain_pytorch() -> None:
    case = Case(counts=(4, 6), queries=20, channels=32, low=(24, 24), size=(96, 96))
    assignment = random_assignment(case)
    results: dict[str, list[Tensor]] = {}
    for name, dtype in (("truth", torch.float64), ("plain", None), ("ours", torch.float32)):
        _, embed, features = case.predictions(dtype or torch.float32, grad=True)
        if name == "ours":
            losses = mask_loss(embed, features, case.targets(), assignment, num_masks=10)
        else:
            losses = restated(mask_logits(embed, features), case, assignment, 10)
        torch.stack(losses).sum().backward()
        assert embed.grad is not None
        assert features.grad is not None
        results[name] = [*losses, embed.grad, features.grad]
    for truth, plain, ours in zip(*results.values(), strict=True):
        slack = 1e-7 * truth.abs().max()
        assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + slack


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = Case()
    _, embed, features = (tensor.to(dtype) for tensor in case.predictions())
    embed.requires_grad_()
    assignment = random_assignment(case)
    losses = mask_loss(embed, features, case.targets(), assignment)
    wide = mask_loss(embed.float(), features.float(), case.targets(), assignment)
    torch.testing.assert_close(losses, wide, rtol=0, atol=0)
    torch.stack(losses).sum().backward()
    assert embed.grad is not None
    assert embed.grad.dtype == dtype
    with torch.autocast("cpu", dtype):
        again = mask_loss(embed, features, case.targets(), assignment)
    torch.testing.assert_close(again, wide, rtol=0, atol=0)


def test_forms_agree() -> None:
    case = Case(counts=(3, 0, 2))
    _, embed, features = case.predictions()
    assignment = random_assignment(case)
    targets = case.targets()
    losses = mask_loss(embed, features, targets, assignment)
    masks = SegmentTargets.from_masks(case.masks(), case.labels())
    assert torch.equal(losses[0], mask_loss(embed, features, masks, assignment)[0])
    one = mask_loss(embed[1], features, targets, assignment[1], num_masks=torch.tensor(5.0))
    torch.testing.assert_close(one[0], losses[0][1])
    assert one[1].shape == ()
    dense = mask_loss(mask_logits(embed, features), None, targets, assignment)
    torch.testing.assert_close(dense, losses)
    strided = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(mask_loss(embed, strided, targets, assignment), losses)


@pytest.mark.parametrize("counts", [(0, 0), (2, 1)])
def test_without_any_match_the_loss_is_zero_and_attached(counts: tuple[int, ...]) -> None:
    case = Case(counts=counts)
    _, embed, features = case.predictions(grad=True)
    assignment = torch.full((2, 2, max(counts)), -1)
    losses = mask_loss(embed, features, case.targets(), assignment)
    assert torch.equal(torch.stack(losses), torch.zeros(2, 2))
    torch.stack(losses).sum().backward()
    for tensor in (embed, features):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_unmatched_segments_touch_no_query() -> None:
    """Not even query 0, on whose place they are computed, when that is NaN."""
    case = Case(counts=(2, 2))
    _, embed, features = case.predictions()
    embed[:, :, 0] = torch.nan
    embed.requires_grad_()
    assignment = torch.tensor([[[1, -1], [2, 3]], [[-1, -1], [4, -1]]])
    torch.stack(mask_loss(embed, features, case.targets(), assignment)).sum().backward()
    assert embed.grad is not None
    assert torch.isfinite(embed.grad).all()
    used = embed.grad.any(-1).nonzero().tolist()
    assert used == [[0, 0, 1], [0, 1, 2], [0, 1, 3], [1, 1, 4]]


def test_only_one_derivative() -> None:
    case = Case()
    _, embed, features = case.predictions(grad=True)
    loss = mask_loss(embed, features, case.targets(), random_assignment(case))[0].sum()
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(loss, embed, create_graph=True)


def test_errors() -> None:
    case = Case()
    _, embed, features = case.predictions()
    targets = case.targets()
    good = random_assignment(case)
    with pytest.raises(TypeError, match=r"assignment must be torch\.int64, got torch\.int32"):
        mask_loss(embed, features, targets, good.int())
    with pytest.raises(ValueError, match=r"assignment must be \[2, 2, 3\], got \[2, 3\]"):
        mask_loss(embed, features, targets, good[0])
    with pytest.raises(ValueError, match="assignment must be on cpu"):
        mask_loss(embed, features, targets, good.to("meta"))
    for wrong in (-2, 7):
        with pytest.raises(ValueError, match=rf"query indices in 0\.\.6, .* got {wrong}"):
            mask_loss(embed, features, targets, torch.full_like(good, wrong))
    with pytest.raises(ValueError, match=r"num_masks must be a number or 0-dim, got \[1\]"):
        mask_loss(embed, features, targets, good, num_masks=torch.ones(1))
    with pytest.raises(ValueError, match="alpha must be at most 1"):
        mask_loss(embed, features, targets, good, alpha=1.5)
