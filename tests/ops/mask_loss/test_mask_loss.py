"""Focal and dice loss of matched masks: restatement, float64, gradients, odd sizes, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.backends import each_backend, native_only
from helpers.strategies import Case, cases, thorough
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mfkernels import SegmentTargets, focal_dice_loss, mask_logits, mask_loss, use_backend
from mfkernels.ops.mask_loss import reference

served_by = each_backend("mask_loss", forced=False)


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
        with use_backend("reference"):
            rows.append(focal_dice_loss(upsampled, torch.cat(masks), num_masks, **options))
    loss_mask, loss_dice = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return loss_mask, loss_dice


@given(cases, st.sampled_from([torch.contiguous_format, torch.channels_last]))
@thorough
def test_equals_the_restatement_with_its_gradients(case: Case, layout: torch.memory_format) -> None:
    assignment = random_assignment(case)
    weight = torch.rand(2, case.layers, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for ours in (True, False):
        _, embed, features = case.predictions(torch.float64, grad=True)
        if ours:
            laid = features.to(memory_format=layout)
            losses = mask_loss(embed, laid, case.targets(), assignment, num_masks=3)
        else:
            losses = restated(mask_logits(embed, features), case, assignment, 3)
        total = (torch.stack(losses) * weight).sum()
        results.append([*losses, *torch.autograd.grad(total, (embed, features))])
    for ours_part, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours_part, expected, rtol=1e-10, atol=1e-12)


@native_only
@pytest.mark.parametrize("channels", [5, 16, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_many_channels(channels: int, dtype: torch.dtype) -> None:
    """More than a panel of any instruction set holds; each of which `MFKERNELS_ISA` chooses."""
    case = Case(counts=(4, 2), channels=channels, low=(9, 7), size=(18, 21))
    grads = []
    for layout in (torch.contiguous_format, torch.channels_last):
        _, embed, features = case.predictions(dtype, grad=True)
        laid = features.to(memory_format=layout)
        losses = mask_loss(embed, laid, case.targets(), random_assignment(case))
        grads.append(torch.autograd.grad(torch.stack(losses).sum(), features)[0])
    torch.testing.assert_close(grads[1], grads[0])


@native_only
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_gradients_lie_in_memory_as_the_features_on_a_cpu(counts: tuple[int, int]) -> None:
    case = Case(counts=counts, channels=5)
    _, embed, features = case.predictions(grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = features.detach().to(memory_format=layout).requires_grad_()
        losses = mask_loss(embed, laid, case.targets(), random_assignment(case))
        (grad,) = torch.autograd.grad(torch.stack(losses).sum(), laid)
        assert grad.is_contiguous(memory_format=layout)


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
            with use_backend("reference"):
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


@pytest.mark.parametrize("layered", [False, True])
def test_losses_may_be_weighted_in_place(layered: bool) -> None:
    case = Case(layers=1)
    _, embed, features = case.predictions(grad=True)
    assignment = random_assignment(case)
    given = (embed, assignment) if layered else (embed[0], assignment[0])
    gradients = []
    for in_place in (False, True):
        loss_mask, loss_dice = mask_loss(given[0], features, case.targets(), given[1])
        if in_place:
            loss_mask *= 20
            loss_dice *= 2
            total = loss_mask + loss_dice
        else:
            total = 20 * loss_mask + 2 * loss_dice
        gradients.append(torch.autograd.grad(total.sum(), (embed, features)))
    torch.testing.assert_close(*gradients)


def test_a_gradient_has_a_gradient() -> None:
    case = Case(size=(9, 7))
    _, embed, features = case.predictions(torch.float64, grad=True)
    targets, assignment = case.targets(), random_assignment(case)
    losses = mask_loss(embed, features, targets, assignment)
    total = losses[0].sum() + 2 * losses[1].sum()
    plain = torch.autograd.grad(total, (embed, features), retain_graph=True)
    again = torch.autograd.grad(total, (embed, features), create_graph=True)
    torch.testing.assert_close(again, plain)
    assert torch.autograd.gradgradcheck(
        lambda *factors: mask_loss(*factors, targets, assignment), (embed, features), fast_mode=True
    )


def test_errors() -> None:
    case = Case()
    _, embed, features = case.predictions()
    targets = case.targets()
    good = random_assignment(case)
    with pytest.raises(TypeError, match=r"assignment must be torch\.int64, got torch\.int32"):
        mask_loss(embed, features, targets, good.int())
    with pytest.raises(ValueError, match=r"must be \[2, 2, 3\], the query .*, got \[2, 3\]"):
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


def arguments(case: Case, *, dense: bool = False, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Of the operator, with gradients."""
    _, embed, features = case.predictions(dtype, grad=True)
    targets = case.targets()
    if dense:
        embed = mask_logits(embed, features).detach().requires_grad_()
    return [
        embed,
        None if dense else features,
        targets.label_map,
        targets.masks,
        targets.counts_tensor(),
        random_assignment(case),
        targets.num_segments,
        0.25,
        2.0,
    ]


@native_only
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operator_is_well_made(overlap: bool, dense: bool, layout: torch.memory_format) -> None:
    given = arguments(Case(overlap=overlap), dense=dense)
    given[1] = None if dense else given[1].to(memory_format=layout)
    torch.library.opcheck(torch.ops.mfkernels.mask_loss.default, (*given, True))
    with torch.no_grad():
        focal, dice, *saved = torch.ops.mfkernels.mask_loss(*given, False)
        backward = (torch.rand_like(focal), torch.rand_like(dice), *saved, *given, True, not dense)
        torch.library.opcheck(torch.ops.mfkernels.mask_loss_backward.default, backward)


@given(cases)
@thorough
@native_only
def test_backends_agree_in_float32(case: Case) -> None:
    results: list[list[Tensor]] = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        _, embed, features = case.predictions(dtype, grad=True)
        with use_backend(backend):
            losses = mask_loss(embed, features, case.targets(), random_assignment(case), gamma=0.7)
        torch.stack(losses).sum().backward()
        results.append([*losses, *(x.grad for x in (embed, features) if x.grad is not None)])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=2e-5, atol=2e-6)


@native_only
def test_neither_threads_nor_uninitialised_memory_change_a_bit() -> None:
    """Deterministic mode fills new tensors with NaN."""
    case = Case(counts=(5, 0, 3), queries=30, channels=40, low=(60, 50), size=(90, 110))
    threads = torch.get_num_threads()
    results: list[list[Tensor]] = []
    try:
        for count, deterministic in ((1, False), (2, False), (3, True)):
            torch.set_num_threads(count)
            torch.use_deterministic_algorithms(deterministic)
            _, embed, features = case.predictions(grad=True)
            losses = mask_loss(embed, features, case.targets(), random_assignment(case))
            torch.stack(losses).sum().backward()
            assert embed.grad is not None
            assert features.grad is not None
            results.append([*losses, embed.grad, features.grad])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_of_one_factor_only() -> None:
    case = Case()
    whole = case.predictions(grad=True)
    assignment = random_assignment(case)
    mask_loss(*whole[1:], case.targets(), assignment)[0].sum().backward()
    for kept in (1, 2):
        leaves = [x.detach().requires_grad_(i == kept) for i, x in enumerate(whole)]
        mask_loss(leaves[1], leaves[2], case.targets(), assignment)[0].sum().backward()
        assert leaves[kept].grad is not None
        assert leaves[3 - kept].grad is None
        torch.testing.assert_close(leaves[kept].grad, whole[kept].grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dense", [False, True])
def test_a_query_of_two_segments_gets_both_gradients(dense: bool) -> None:
    case = Case(layers=1, counts=(3,))
    given = arguments(case, dense=dense, dtype=torch.float64)
    embed, features = given[:2]
    inputs = [embed] if dense else [embed, features]
    gradients = []
    for assignment in ([1, 4, 1], [1, -1, -1], [-1, 4, -1], [-1, -1, 1]):
        losses = mask_loss(embed, features, case.targets(), torch.tensor([[assignment]]))
        gradients.append(torch.autograd.grad(losses[0].sum() + 2 * losses[1].sum(), inputs))
    for whole, *parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-10, atol=1e-14)


def test_any_strides() -> None:
    case = Case(counts=(3, 2), channels=9, low=(7, 20), size=(30, 41))
    _, embed, features = case.predictions(torch.float64)
    targets = case.targets()
    assignment = random_assignment(case)
    assert targets.label_map is not None
    results: list[list[Tensor]] = []
    for strided in (False, True):
        inputs = [x.clone() for x in (embed, features)]
        label_map = targets.label_map
        if strided:
            inputs[0] = embed.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
            inputs[1] = features.repeat(1, 1, 2, 2)[:, :, ::2, :20]
            inputs[1].copy_(features)
            label_map = label_map.mT.contiguous().mT
        odd = SegmentTargets(targets.labels, targets.counts, label_map=label_map)
        for x in inputs:
            x.requires_grad_()
        losses = mask_loss(inputs[0], inputs[1], odd, assignment)
        torch.stack(losses).sum().backward()
        results.append([*losses, *(x.grad for x in inputs if x.grad is not None)])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_logits_stay_where_they_are(bad: float) -> None:
    """A layer with a NaN or infinity leaves the others and the process alone."""
    case = Case(layers=2, counts=(3, 2), size=(24, 23))
    given = arguments(case)
    with torch.no_grad():
        given[0][0] = bad
    for inputs in (given[:2], [mask_logits(*given[:2]).detach().requires_grad_(), None]):
        losses = mask_loss(*inputs, case.targets(), given[5])
        torch.stack(losses).sum().backward()
        assert torch.isfinite(torch.stack(losses)[:, 1]).all()
        assert inputs[0].grad is not None
        assert torch.isfinite(inputs[0].grad[1]).all()
        if bad != bad:
            assert losses[0][0].isnan()


@native_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dense", [False, True])
def test_gradients_in_half_precision_are_those_of_float32_rounded(
    dtype: torch.dtype, dense: bool
) -> None:
    case = Case()
    small = arguments(case, dense=dense, dtype=dtype)[: 1 if dense else 2]
    wide = [x.detach().float().requires_grad_() for x in small]
    for inputs in (small, wide):
        features = None if dense else inputs[1]
        losses = mask_loss(inputs[0], features, case.targets(), random_assignment(case))
        torch.stack(losses).sum().backward()
    for ours, truth in zip(small, wide, strict=True):
        assert ours.grad is not None
        assert truth.grad is not None
        assert torch.equal(ours.grad, truth.grad.to(dtype))


@native_only
def test_little_is_saved_for_the_backward_pass() -> None:
    case = Case(counts=(4, 6), queries=20, channels=8, low=(24, 24), size=(96, 96))
    _, embed, features = case.predictions(grad=True)
    targets = case.targets()
    assert targets.label_map is not None
    known = {x.data_ptr() for x in (embed, features, targets.label_map)}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        mask_loss(embed, features, targets, random_assignment(case))
    # Three sums a mask, the assignment, the counts and the divisor.
    assert sum(saved.values()) <= 2 * 2 * 6 * (3 * 4 + 8) + 64
