"""Sums that do not depend on the order of their terms."""

from __future__ import annotations

from fractions import Fraction

import torch

from maskformer.evaluation.exact_sums import no_terms, terms, totals


def test_any_order_gives_the_nearest_number_to_the_exact_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    iou = torch.rand(1000, 3, generator=generator, dtype=torch.float64) / 2 + 0.5
    weights = torch.rand(1000, 3, generator=generator, dtype=torch.float64) * 1e5
    for values, exact in ((iou, True), (weights, False)):
        sums = no_terms(3) + terms(values).sum(1)
        shuffled = no_terms(3)
        for row in values[torch.randperm(1000, generator=generator)]:
            shuffled += terms(row)
        assert torch.equal(sums, shuffled)
        expected = [float(sum(map(Fraction, column.tolist()))) for column in values.T]
        if exact:
            assert totals(sums).tolist() == expected
        torch.testing.assert_close(totals(sums).tolist(), expected, rtol=1e-15, atol=0)


def test_one_counts_as_one() -> None:
    assert totals(terms(torch.tensor([1.0, 0.0], dtype=torch.float64))).tolist() == [1, 0]
