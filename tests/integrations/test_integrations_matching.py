"""Assignments as pairs, and costs and losses at points, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mfkernels.integrations import point_sampling
from mfkernels.integrations.matching import assign, binary_targets, from_pairs, pairs

COUNTS = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 5), st.integers(0, 2**31))
def test_pairs_are_scipys(counts: list[int], queries: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that there are ties.
    shape = (2, len(counts), queries, max(counts))
    cost = torch.randint(4, shape, generator=generator).float()
    assignment = assign(cost, counts)
    for of_layer, matched in zip(cost, assignment, strict=True):
        found = pairs(matched, counts, queries)
        for matrix, count, (query, segment) in zip(of_layer, counts, found, strict=True):
            rows, columns = linear_sum_assignment(matrix[:, :count])
            assert query.tolist() == rows.tolist()
            assert segment.tolist() == columns.tolist()
        back = from_pairs(found, counts, queries, cost.device)
        assert torch.equal(back, matched)


def definition(maps: Tensor, where: Tensor) -> Tensor:
    grid = 2 * where[:, :, None] - 1
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, :, 0]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_the_cost_of_pairs_at_points(count: int, queries: int, soft: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(1, queries, 5, 7, generator=generator, dtype=torch.float64)
    classes = torch.randn(1, queries, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(count, 11, 13, generator=generator, dtype=torch.float64)
    mask = mask if soft else mask > 0.5
    label = torch.randint(3, (count,), generator=generator)
    torch.manual_seed(seed % 1000)
    cost = point_sampling.point_matching_cost(
        classes, logits, [mask], [label], 30, class_weight=2.0, mask_weight=5.0, dice_weight=3.0
    )
    torch.manual_seed(seed % 1000)
    where = torch.rand(1, 30, 2).double()
    x = definition(logits[0], where.expand(queries, -1, -1))
    t = definition(mask.double(), where.expand(count, -1, -1)) if count else torch.zeros(0, 30)
    expected = torch.zeros(1, queries, count, dtype=torch.float64)
    for q in range(queries):
        for n in range(count):
            s = x[q].sigmoid()
            dice = 1 - (2 * (s * t[n]).sum() + 1) / (s.sum() + t[n].sum() + 1)
            entropy = F.binary_cross_entropy_with_logits(x[q], t[n])
            probability = classes[0, q].softmax(-1)[label[n]]
            expected[0, q, n] = 5 * entropy + 3 * dice - 2 * probability
    torch.testing.assert_close(cost, expected, rtol=1e-11, atol=1e-11)


def test_a_cost_that_is_large_is_exact() -> None:
    """The cross-entropy of sure queries is a small difference of large sums."""
    logits = torch.full((1, 2, 4, 4), 80.0)
    logits[:, 1] = -80
    masks, labels = [torch.ones(1, 4, 4)], [torch.tensor([0])]
    torch.manual_seed(0)
    cost = point_sampling.point_matching_cost(
        torch.zeros(1, 2, 3),
        logits,
        masks,
        labels,
        64,
        class_weight=0.0,
        mask_weight=1.0,
        dice_weight=0.0,
    )
    torch.manual_seed(0)
    exact = point_sampling.point_matching_cost(
        torch.zeros(1, 2, 3, dtype=torch.float64),
        logits.double(),
        masks,
        labels,
        64,
        class_weight=0.0,
        mask_weight=1.0,
        dice_weight=0.0,
    )
    torch.testing.assert_close(cost.double(), exact, rtol=1e-6, atol=1e-5)


def test_losses_at_points_are_differentiable() -> None:
    logits = torch.randn(1, 3, 6, 8, requires_grad=True)
    indices = [(torch.tensor([0, 2]), torch.tensor([1, 0]))]
    masks = [torch.rand(2, 12, 16).round()]
    sampling = point_sampling.Sampling(20, 3.0, 0.75)
    loss_mask, loss_dice = point_sampling.mask_losses(logits, masks, indices, sampling, unique=True)
    total = loss_mask + loss_dice
    (gradient,) = torch.autograd.grad(total, logits, retain_graph=True)
    assert bool((gradient[0, 1] == 0).all())
    assert bool((gradient[0, [0, 2]] != 0).any())
    (again,) = torch.autograd.grad(total, logits, create_graph=True)
    torch.testing.assert_close(again.detach(), gradient)


@pytest.mark.parametrize(
    ("query", "segment", "unique"),
    [
        ([1, 4], [1, 0], True),
        ([1, 4], [1, 0], False),
        ([1, 4], [1, 1], False),
        ([1, 1], [0, 1], False),
        ([0, 1, 2, 4], [0, 1, 0, 1], False),
    ],
)
def test_losses_at_points_of_any_pairs(query: list[int], segment: list[int], unique: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.rand(2, 16, 16, generator=generator) > 0.5
    sampling = point_sampling.Sampling(32, 3.0, 0.75)
    indices = [(torch.tensor(query), torch.tensor(segment))]
    torch.manual_seed(1)
    losses = point_sampling.mask_losses(logits, [mask], indices, sampling, unique=unique)
    rows = logits[0][query]
    torch.manual_seed(1)
    where = point_sampling.uncertain_points(rows, sampling)
    x, t = definition(rows, where), definition(mask[segment].double(), where)
    s = x.sigmoid()
    dice = 1 - (2 * (s * t).sum(1) + 1) / (s.sum(1) + t.sum(1) + 1)
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1)
    expected = entropy.sum(), dice.sum()
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-11)
    mine, truth = (torch.autograd.grad(sum(result), logits)[0] for result in (losses, expected))
    torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("query", "segment"), [([0, 2], [1, 1]), ([2, 2], [0, 1])])
def test_pairs_that_are_not_one_to_one_have_no_inverse(
    query: list[int], segment: list[int]
) -> None:
    indices = [(torch.tensor(query), torch.tensor(segment))]
    with pytest.raises(ValueError, match="must match one-to-one; for image 0 it gave a"):
        from_pairs(indices, (2,), 4, torch.device("cpu"))


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_uncertain_points_are_where_the_logits_are_small(share: float) -> None:
    ramp = torch.linspace(-8, 8, 64).expand(2, 64, 64)
    chosen = point_sampling.uncertain_points(ramp, point_sampling.Sampling(200, 4.0, share))
    assert chosen.shape == (2, 200, 2)
    near = (chosen[..., 0] - 0.5).abs() < 0.15
    # A quarter of the candidates, those around the middle; the rest are anywhere.
    assert float(near.float().mean()) == pytest.approx(share + 0.3 * (1 - share), abs=0.08)


def test_binary_targets() -> None:
    masks = [torch.tensor([[[0.0, 1.0]]]), torch.ones(2, 1, 2, dtype=torch.uint8)]
    labels = [torch.tensor([4]), torch.tensor([1, 2])]
    targets = binary_targets(masks, labels)
    assert targets is not None
    assert targets.masks is not None
    assert targets.masks.tolist() == [[[False, True]], [[True, True]], [[True, True]]]
    assert targets.labels.tolist() == [4, 1, 2]
    masks[0][0, 0, 0] = 0.5
    assert binary_targets(masks, labels) is None


@pytest.mark.parametrize("query", [[1, 1], [-1, 0], [0, 5]])
def test_compiled_pairs_that_match_twice_or_nothing_are_refused(query: list[int]) -> None:
    def inverse(query: Tensor, segment: Tensor) -> Tensor:
        return from_pairs([(query, segment)], [3], 5, torch.device("cpu"))

    torch.compiler.reset()
    compiled = torch.compile(inverse, fullgraph=True, backend="eager")
    segment = torch.tensor([2, 0])
    assert compiled(torch.tensor([4, 1]), segment).tolist() == [[1, -1, 4]]
    with pytest.raises(RuntimeError, match="one-to-one"):
        compiled(torch.tensor(query), segment)
