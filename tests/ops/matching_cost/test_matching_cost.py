"""The matching cost: golden numbers, a straight restatement, float64, odd sizes, errors."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import golden
from helpers.backends import each_backend, native_only
from helpers.strategies import Case, cases, thorough
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.nn import functional as F

from mfkernels import SegmentTargets, mask_logits, matching_cost, use_backend
from mfkernels.ops.matching_cost.reference import matching_cost as reference

served_by = each_backend("matching_cost", forced=False)


def official_targets() -> SegmentTargets:
    dicts = golden.targets()
    return SegmentTargets.from_masks([t["masks"] for t in dicts], [t["labels"] for t in dicts])


def restated(
    class_logits: Tensor,
    logits: Tensor,
    case: Case,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weights: tuple[float, float, float] = (1, 20, 1),
) -> Tensor:
    """Every pair on its own, from the definition: `[L, B, Q, T]`."""
    positive, negative = (1, 1) if alpha < 0 else (alpha, 1 - alpha)
    most = max(case.counts)
    cost = torch.zeros(*class_logits.shape[:3], most, dtype=class_logits.dtype)
    probability = class_logits.softmax(-1)
    for image, (masks, labels) in enumerate(zip(case.masks(), case.labels(), strict=True)):
        rows = (torch.arange(case.low[0]) * (case.size[0] / case.low[0])).floor().long()
        columns = (torch.arange(case.low[1]) * (case.size[1] / case.low[1])).floor().long()
        for segment, label in enumerate(labels):
            y = masks[segment][rows][:, columns].to(logits.dtype)
            for layer in range(len(logits)):
                for query, x in enumerate(logits[layer, image]):
                    s = x.sigmoid()
                    focal = torch.where(
                        y > 0,
                        positive * (1 - s) ** gamma * F.softplus(-x),
                        negative * s**gamma * F.softplus(x),
                    ).mean()
                    dice = 1 - (2 * (s * y).sum() + 1) / (s.sum() + y.sum() + 1)
                    cost[layer, image, query, segment] = (
                        -weights[0] * probability[layer, image, query, label]
                        + weights[1] * focal
                        + weights[2] * dice
                    )
    return cost


def test_golden_numbers() -> None:
    class_logits, masks = golden.predictions(0.0)
    cost = matching_cost(class_logits, masks, None, official_targets())
    for image, expected in enumerate(golden.FINAL_COST):
        wanted = torch.tensor(expected)
        # Equal to the last digit in the official order of summation, which BLAS may change: the
        # printed numbers themselves are 2.2e-6 from float64.
        torch.testing.assert_close(cost[image, :, : wanted.shape[1]], wanted, rtol=0, atol=3e-6)
    assert (cost[0, :, 2] == 0).all()


def test_golden_numbers_in_float64() -> None:
    class_logits, masks = golden.predictions(0.0, torch.float64)
    cost = matching_cost(class_logits, masks, None, official_targets())
    for image, expected in enumerate(golden.FINAL_COST):
        wanted = torch.tensor(expected, dtype=torch.float64)
        # The printed numbers come from float32.
        torch.testing.assert_close(cost[image, :, : wanted.shape[1]], wanted, rtol=0, atol=4e-6)


@given(cases)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_equals_the_definition(case: Case) -> None:
    class_logits, embed, features = case.predictions(torch.float64)
    expected = restated(class_logits, mask_logits(embed, features), case)
    # The restatement takes exact ratios: leave out sizes where float32 rounds to another pixel.
    if not all(
        math.floor(i * torch.tensor(big / small).float().item()) == i * big // small
        for small, big in zip(case.low, case.size, strict=True)
        for i in range(small)
    ):
        return
    cost = matching_cost(class_logits, embed, features, case.targets())
    torch.testing.assert_close(cost, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("alpha", [-1.0, 0.6])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_parameters(alpha: float, gamma: float) -> None:
    case = Case(overlap=True)
    class_logits, embed, features = case.predictions(torch.float64)
    expected = restated(
        class_logits, mask_logits(embed, features), case, alpha, gamma, (3.0, 5.0, 0.5)
    )
    cost = matching_cost(
        class_logits,
        embed,
        features,
        case.targets(),
        class_weight=3.0,
        mask_weight=5.0,
        dice_weight=0.5,
        alpha=alpha,
        gamma=gamma,
    )
    torch.testing.assert_close(cost, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(24, 20), (13, 29), (6, 5), (3, 2)])
def test_targets_are_subsampled_as_interpolate_does(size: tuple[int, int]) -> None:
    """With huge logits and only the dice term, the cost says which pixels were picked."""
    case = Case(size=size, overlap=True)
    class_logits, *_ = case.predictions()
    for image, masks in enumerate(case.masks()):
        low = F.interpolate(masks[None].float(), case.low, mode="nearest")[0]
        one = SegmentTargets.from_masks([masks], [case.labels()[image]])
        perfect = (low * 2 - 1) * 1e4
        cost = matching_cost(
            class_logits[0, :1, : len(low)],
            perfect[None],
            None,
            one,
            class_weight=0,
            mask_weight=0,
        )
        assert cost[0].diag().abs().max() < 1e-6


def test_float32_is_as_good_as_plain_pytorch() -> None:
    case = Case(layers=2, counts=(4, 6), queries=20, channels=32, low=(24, 24), size=(96, 96))
    class_logits, embed, features = case.predictions()
    targets = case.targets()
    doubles = (class_logits.double(), embed.double(), features.double())
    truth = matching_cost(*doubles, targets)
    with use_backend("reference"):
        plain = restated(class_logits, mask_logits(embed, features), case)
    error = (matching_cost(class_logits, embed, features, targets) - truth).abs().max()
    assert error <= 1.5 * (plain - truth).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = Case(low=(30, 30), size=(60, 60))
    inputs = [tensor.to(dtype) for tensor in case.predictions()]
    cost = matching_cost(inputs[0], inputs[1], inputs[2], case.targets())
    wide = [tensor.float() for tensor in inputs]
    assert cost.dtype == torch.float32
    assert torch.equal(cost, matching_cost(wide[0], wide[1], wide[2], case.targets()))
    with torch.autocast("cpu", dtype):
        assert torch.equal(cost, matching_cost(inputs[0], inputs[1], inputs[2], case.targets()))
    # 20 000 in half precision squares to infinity; the cost does not.
    huge = matching_cost(inputs[0], inputs[1] * 1e4, inputs[2], case.targets())
    assert torch.isfinite(huge).all()


@pytest.mark.parametrize("channels", [1, 2, 37, 256])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_factors_with_any_strides_are_summed_in_float32(
    dtype: torch.dtype, channels: int, overlap: bool
) -> None:
    """Also where the processor multiplies pairs of bfloat16."""
    sizes = {"low": (24, 25), "size": (96, 96)}
    case = Case(counts=(4, 6), queries=20, channels=channels, overlap=overlap, **sizes)
    class_logits, embed, features = case.predictions()
    targets = case.targets()
    embed, features = embed.to(dtype), features.to(dtype)
    truth = matching_cost(class_logits.double(), embed.double(), features.double(), targets)
    wide = matching_cost(class_logits, embed.float(), features.float(), targets)
    turned = embed.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    cropped = torch.nn.functional.pad(features, (1, 3, 2, 1))[:, :, 2:-1, 1:-3]
    for factors in (
        (embed, features),
        (turned, features.contiguous(memory_format=torch.channels_last)),
        (embed, cropped),
    ):
        cost = matching_cost(class_logits, *factors, targets)
        assert (cost - truth).abs().max() <= 1.5 * (wide - truth).abs().max() + 1e-6


def test_forms_agree() -> None:
    case = Case(counts=(3, 0, 2))
    class_logits, embed, features = case.predictions()
    label_maps = case.targets()
    masks = SegmentTargets.from_masks(case.masks(), case.labels())
    cost = matching_cost(class_logits, embed, features, label_maps)
    assert cost.shape == (2, 3, 7, 3)
    assert torch.equal(cost, matching_cost(class_logits, embed, features, masks))
    for layer in range(2):
        single = matching_cost(class_logits[layer], embed[layer], features, label_maps)
        assert torch.equal(cost[layer], single)
    dense = matching_cost(class_logits, mask_logits(embed, features), None, label_maps)
    torch.testing.assert_close(cost, dense, rtol=1e-5, atol=1e-5)
    strided = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        cost, matching_cost(class_logits, embed, strided, label_maps), rtol=1e-5, atol=1e-5
    )
    with use_backend("reference"):
        expected = matching_cost(class_logits, embed, features, label_maps)
    torch.testing.assert_close(cost, expected, rtol=1e-6, atol=1e-6)


def test_oracle_is_differentiable_and_the_public_function_is_not() -> None:
    case = Case(layers=1, counts=(2,), queries=3, low=(3, 3), size=(6, 6))
    inputs = case.predictions(torch.float64, grad=True)
    targets = case.targets()
    assert not matching_cost(*inputs, targets).requires_grad
    assert torch.autograd.gradcheck(
        lambda *tensors: reference(*tensors, targets, 1.0, 20.0, 1.0, 0.25, 2.0), inputs
    )


def test_no_segment_at_all() -> None:
    case = Case(counts=(0, 0))
    assert matching_cost(*case.predictions(), case.targets()).shape == (2, 2, 7, 0)


def test_label_that_could_not_be_checked_gives_nan() -> None:
    """As for targets built on a GPU, where looking at labels would wait for it."""
    case = Case(counts=(3, 2))
    targets = case.targets()
    targets.labels[1] = case.classes
    object.__setattr__(targets, "_label_limits", None)
    cost = matching_cost(*case.predictions(), targets)
    assert cost[:, 0, :, 1].isnan().all()
    cost[:, 0, :, 1] = 0
    assert torch.isfinite(cost).all()


def test_errors() -> None:
    case = Case()
    class_logits, embed, features = case.predictions()
    targets = case.targets()
    with pytest.raises(ValueError, match=r"class_logits must be \[2, 2, 7, K\+1\]"):
        matching_cost(class_logits[0], embed, features, targets)
    with pytest.raises(ValueError, match=r"K\+1\] to fit the masks, got \[2, 7, 1\]"):
        matching_cost(class_logits[0, ..., :1], embed[0], features, targets)
    with pytest.raises(TypeError, match="class_logits must have a floating"):
        matching_cost(class_logits.long(), embed, features, targets)
    with pytest.raises(ValueError, match="class_logits must be on cpu"):
        matching_cost(class_logits.to("meta"), embed, features, targets)
    with pytest.raises(ValueError, match="targets hold 2 images, but the predictions 1"):
        matching_cost(class_logits[:, :1], embed[:, :1], features[:1], targets)
    with pytest.raises(ValueError, match=r"targets must be on cpu .* but is on meta"):
        matching_cost(class_logits, embed, features, targets.to("meta"))
    with pytest.raises(TypeError, match="targets must be SegmentTargets, got list"):
        matching_cost(class_logits, embed, features, case.official_targets())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels must be in"):
        matching_cost(class_logits[..., :2], embed, features, targets)
    with pytest.raises(ValueError, match="gamma must be at least 0, got nan"):
        matching_cost(class_logits, embed, features, targets, gamma=math.nan)
    empty = SegmentTargets.from_label_maps(torch.zeros(2, 0, 3).long(), case.labels())
    with pytest.raises(ValueError, match=r"at least one pixel, got size \(0, 3\)"):
        matching_cost(class_logits, embed, features, empty)


@native_only
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_operator_is_well_made(overlap: bool, dense: bool) -> None:
    case = Case(overlap=overlap)
    class_logits, embed, features = case.predictions()
    targets = case.targets()
    given = (
        class_logits,
        mask_logits(embed, features) if dense else embed,
        None if dense else features,
        targets.label_map,
        targets.masks,
        targets.labels,
        targets.counts_tensor(),
        targets.max_count,
        *(1.0, 20.0, 1.0, 0.25, 2.0),
    )
    torch.library.opcheck(torch.ops.mfkernels.matching_cost.default, given)


@given(cases)
@thorough
@native_only
def test_backends_agree_in_float32(case: Case) -> None:
    class_logits, embed, features = case.predictions()
    targets = case.targets()
    for masks in ((embed, features), (mask_logits(embed, features), None)):
        cost = matching_cost(class_logits, *masks, targets, gamma=1.3)
        with use_backend("reference"):
            truth = matching_cost(
                class_logits.double(), embed.double(), features.double(), targets, gamma=1.3
            )
        torch.testing.assert_close(cost.double(), truth, rtol=3e-6, atol=3e-6)


@native_only
@pytest.mark.parametrize("overlap", [False, True])
def test_neither_threads_nor_uninitialised_memory_change_a_bit(overlap: bool) -> None:
    """Deterministic mode fills new tensors with NaN."""
    sizes = {"low": (60, 50), "size": (90, 110)}
    case = Case(counts=(5, 0, 3), queries=30, channels=600, overlap=overlap, **sizes)
    threads = torch.get_num_threads()
    costs: list[Tensor] = []
    try:
        for count, deterministic in ((1, False), (2, False), (3, True)):
            torch.set_num_threads(count)
            torch.use_deterministic_algorithms(deterministic)
            costs.append(matching_cost(*case.predictions(), case.targets()))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert torch.equal(costs[0], costs[1])
    assert torch.equal(costs[0], costs[2])
    with use_backend("reference"):
        expected = matching_cost(*case.predictions(), case.targets())
    torch.testing.assert_close(costs[0], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("overlap", [False, True])
def test_any_strides(overlap: bool) -> None:
    case = Case(channels=9, low=(7, 20), size=(30, 41), overlap=overlap)
    class_logits, embed, features = case.predictions(torch.float64)
    cost = matching_cost(class_logits, embed, features, case.targets())
    odd_embed = embed.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    odd_features = features.repeat(1, 1, 2, 2)[:, :, ::2, :20]
    odd_features.copy_(features)
    odd_classes = class_logits.mT.contiguous().mT
    odd = matching_cost(odd_classes, odd_embed, odd_features, case.targets())
    torch.testing.assert_close(odd, cost, rtol=1e-12, atol=1e-12)
    logits = mask_logits(embed, features)
    strided = logits.mT.contiguous().mT
    ours = matching_cost(class_logits, strided, None, case.targets())
    torch.testing.assert_close(ours, cost, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_logits_stay_in_their_query(bad: float, overlap: bool) -> None:
    case = Case(overlap=overlap)
    class_logits, embed, features = case.predictions()
    expected = matching_cost(class_logits, embed, features, case.targets())
    logits = mask_logits(embed, features)
    logits[1, 0, 2] = bad
    cost = matching_cost(class_logits, logits, None, case.targets())
    if bad != bad:
        assert cost[1, 0, 2].isnan().all()
    cost[1, 0, 2] = expected[1, 0, 2]
    torch.testing.assert_close(cost, expected, rtol=1e-5, atol=1e-5)


@native_only
def test_empty_batch() -> None:
    given = (torch.zeros(2, 0, 3, 5), torch.zeros(2, 0, 3, 4), torch.zeros(0, 4, 2, 2))
    label_map = torch.zeros(0, 8, 8, dtype=torch.int16)
    empty = torch.zeros(0, dtype=torch.int64)
    options = (0, 1.0, 20.0, 1.0, 0.25, 2.0)
    cost = torch.ops.mfkernels.matching_cost(*given, label_map, None, empty, empty, *options)
    assert cost.shape == (2, 0, 3, 0)
