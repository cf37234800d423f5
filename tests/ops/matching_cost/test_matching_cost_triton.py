"""The Triton kernels of the matching cost in the interpreter: ranges, tiles and strange values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels import SegmentTargets
from mfkernels.ops.matching_cost.reference import matching_cost as oracle
from mfkernels.ops.matching_cost.triton_launch import matching_cost

OPTIONS = (1.0, 20.0, 1.0, 0.25, 2.0)
CASE = Case(counts=(3, 2), queries=9, channels=40, low=(12, 11), size=(24, 22))


def cost_of(
    class_logits: Tensor, embed: Tensor, features: Tensor, targets: SegmentTargets, *options: float
) -> Tensor:
    stored = (targets.label_map, targets.masks, targets.labels, targets.counts_tensor())
    return matching_cost(class_logits, embed, features, *stored, targets.max_count, *options)


def both(
    case: Case, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], *options: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Ours, the oracle's in float32 and in float64, of changed embeddings and features."""
    class_logits, embed, features = case.predictions()
    embed, features = change(embed, features)
    targets = case.targets()
    ours = cost_of(class_logits, embed, features, targets, *options)
    plain = oracle(class_logits, embed, features, targets, *options)
    doubles = (x.double() for x in (class_logits, embed, features))
    return ours, plain, oracle(*doubles, targets, *options)


def assert_as_exact(ours: Tensor, plain: Tensor, truth: Tensor) -> None:
    slack = 8 * 2**-23 * truth.abs().max()
    assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + slack


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("of_embed", "of_features"),
    [(1.0, 30.0), (1.0, 1e30), (1.0, 1e-30), (1e30, 1.0), (1e20, 1e-20), (1e-25, 1e25), (1e-38, 1)],
)
def test_huge_and_tiny_factors(
    of_embed: float, of_features: float, half: torch.dtype | None
) -> None:
    def change(embed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        scaled = embed * of_embed, features * of_features
        return scaled if half is None else (scaled[0].to(half), scaled[1].to(half))

    assert_as_exact(*both(CASE, change, *OPTIONS))


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.75, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_weights_and_exponents_at_huge_logits(alpha: float, gamma: float) -> None:
    for size in (1.0, 1e30):
        results = both(CASE, lambda e, f: (e, f * size), 1.0, 20.0, 1.0, alpha, gamma)  # noqa: B023
        assert_as_exact(*results)


def test_embeddings_of_different_size_do_not_disturb_each_other() -> None:
    def change(embed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return embed * torch.logspace(-30, 30, CASE.queries)[:, None], features

    results = both(CASE, change, *OPTIONS)
    for query in range(CASE.queries):
        assert_as_exact(*(x[:, :, query] for x in results))


@pytest.mark.parametrize("count", [1, 15, 16, 63, 64])
@pytest.mark.parametrize("overlap", [False, True])
def test_numbers_of_segments(count: int, overlap: bool) -> None:
    """Around the sizes of tiles: a column after the last segment belongs to the whole image."""
    case = Case(layers=1, counts=(count, 1), low=(5, 9), size=(20, 18), overlap=overlap)
    assert_as_exact(*both(case, lambda *factors: factors, *OPTIONS))


@pytest.mark.parametrize("low", [(1, 3), (70, 1), (3, 40), (9, 17), (4, 32)])
@pytest.mark.parametrize("half", [False, True])
def test_sizes_of_masks(low: tuple[int, int], half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows shorter and longer than a tile of pixels, several programs, incomplete tiles."""
    monkeypatch.setattr("mfkernels.ops.matching_cost.triton_launch.PIXELS_OF_A_SPLIT", 64)

    def change(embed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return (embed.bfloat16(), features.bfloat16()) if half else (embed, features)

    case = Case(layers=1, queries=3, low=low, size=(2 * low[0] + 1, 3 * low[1]))
    assert_as_exact(*both(case, change, *OPTIONS))


@pytest.mark.parametrize("channels", [1, 33, 256, 300])
def test_numbers_of_channels(channels: int) -> None:
    case = Case(layers=1, channels=channels)
    assert_as_exact(*both(case, lambda e, f: (e, f / channels**0.5), *OPTIONS))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "dense"])
def test_bad_values_stay_where_they_belong(form: str, bad: float) -> None:
    """In their query, or, in the features, in their image."""
    class_logits, embed, features = CASE.predictions()
    targets = CASE.targets()
    stored = (targets.label_map, targets.masks, targets.labels, targets.counts_tensor(), 3)
    expected = torch.ones(2, 2, CASE.queries, dtype=torch.bool)
    expected[0, 0, 3] = False
    if form == "dense":
        logits = torch.einsum("lbqc,bchw->lbqhw", embed, features)
        logits[0, 0, 3, 5, 5] = bad
        cost = matching_cost(class_logits, logits, None, *stored, *OPTIONS)
        assert torch.equal(cost.isfinite().all(-1), expected)
        return
    dtype = getattr(torch, form)
    worse = embed.clone()
    worse[0, 0, 3, 5] = bad
    cost = matching_cost(class_logits, worse.to(dtype), features.to(dtype), *stored, *OPTIONS)
    assert torch.equal(cost.isfinite().all(-1), expected)
    features[1, 5, 3, 5] = bad
    cost = matching_cost(class_logits, embed.to(dtype), features.to(dtype), *stored, *OPTIONS)
    expected[0, 0, 3] = True
    expected[:, 1] = False
    assert torch.equal(cost.isfinite().all(-1), expected)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7F800001, -1])
def test_any_bits_of_a_nan_stay_one(bits: int, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that GPUs compute have all bits set, which rounding would carry on into zero."""
    monkeypatch.setattr("mfkernels.ops.matching_cost.triton_launch.tf32_allowed", lambda: tf32)
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    for place in ("embed", "features"):
        class_logits, embed, features = CASE.predictions()
        (embed[0, 0, 1] if place == "embed" else features[0, :, 0, 0])[0] = nan
        cost = cost_of(class_logits, embed, features, CASE.targets(), *OPTIONS)
        wrong = cost[0, 0, 1] if place == "embed" else cost[:, 0]
        assert wrong[..., : CASE.counts[0]].isnan().all()


def test_labels_and_counts_of_any_stride() -> None:
    class_logits, embed, features = CASE.predictions()
    targets = CASE.targets()
    expected = cost_of(class_logits, embed, features, targets, *OPTIONS)
    stored = (targets.label_map, targets.masks)
    strided = [torch.stack((x, x + 1), 1)[:, 0] for x in (targets.labels, targets.counts_tensor())]
    found = matching_cost(class_logits, embed, features, *stored, *strided, 3, *OPTIONS)
    assert torch.equal(found, expected)
    strided = SegmentTargets(strided[0], CASE.counts, *stored)
    assert strided.labels.is_contiguous()


def test_tf32_has_at_least_its_eleven_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfkernels.ops.matching_cost.triton_launch.tf32_allowed", lambda: True)

    def rounded(x: Tensor) -> Tensor:
        bits = x.view(torch.int32) + 2**12
        return (bits & -(2**13)).view(torch.float32)

    ours, _, truth = both(CASE, lambda e, f: (e, f), *OPTIONS)
    _, same, _ = both(CASE, lambda e, f: (rounded(e), rounded(f)), *OPTIONS)
    error, tf32 = (ours - truth).abs().max(), (same - truth).abs().max()
    assert 1e-5 < error <= 1.5 * tf32


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("form", "size"),
    [
        *((form, size) for form in ("factors", "bfloat16") for size in (3e2, 65504.0)),
        *(("dense", size) for size in (3e2, 65504.0, 1e8, 1e30)),
    ],
)
def test_a_right_pixel_with_a_large_logit_swallows_nothing(
    form: str, overlap: bool, size: float
) -> None:
    """Each cost, not only the largest, is as exact as that of plain PyTorch.

    Of factors, 22 bits below the largest of an embedding count, so that they stay below 2²².
    """
    case = Case(layers=1, counts=(3, 2), queries=5, low=(6, 5), size=(6, 5), overlap=overlap)
    targets = case.targets()

    def change(embed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        embed[..., 0] = (torch.arange(case.queries) % 2) * size
        for image in range(2):
            features[image, 0] = targets.dense_masks(image)[0]
        return embed, features

    if form == "bfloat16":
        results = both(case, lambda *x: tuple(y.bfloat16() for y in change(*x)), *OPTIONS)
    elif form == "factors":
        results = both(case, change, *OPTIONS)
    else:
        class_logits, embed, features = case.predictions()
        logits = torch.einsum("lbqc,bchw->lbqhw", *change(embed, features))
        stored = (targets.label_map, targets.masks, targets.labels, targets.counts_tensor(), 3)
        ours = matching_cost(class_logits, logits, None, *stored, *OPTIONS)
        plain = oracle(class_logits, logits, None, targets, *OPTIONS)
        truth = oracle(class_logits.double(), logits.double(), None, targets, *OPTIONS)
        results = ours, plain, truth
    ours, plain, truth = results
    slack = 1e-6 + 2**-18 * truth.abs()
    assert ((ours - truth).abs() <= 2 * (plain - truth).abs() + slack).all()
