"""Triton kernels on a real GPU, against the oracles in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels import SegmentTargets, mask_loss, matching_cost, use_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CASES = [
    Case(counts=(9, 0, 4), queries=100, channels=256, low=(64, 48), size=(256, 192), classes=150),
    Case(counts=(3, 40), queries=30, channels=70, low=(37, 29), size=(90, 101), overlap=True),
    Case(counts=(9, 3), queries=30, channels=64, low=(37, 29), size=(74, 58)),
    Case(counts=(20, 9), queries=100, channels=96, low=(40, 20), size=(160, 80)),
    Case(counts=(5, 40), queries=60, channels=256, low=(64, 48), size=(256, 192), overlap=True),
]


def everything(
    case: Case, dtype: torch.dtype, compute: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cost, losses and gradients of inputs rounded to `dtype` and given as `compute`."""
    inputs = [x.to(dtype).to(compute).cuda() for x in case.predictions()]
    targets = case.targets().to("cuda")
    assert isinstance(targets, SegmentTargets)
    inputs[2] = inputs[2].to(memory_format=layout)
    embed, features = (x.requires_grad_() for x in inputs[1:])
    cost = matching_cost(*inputs, targets)
    most = targets.max_count
    assignment = torch.arange(most, device="cuda").expand(case.layers, len(case.counts), most)
    assignment = assignment.where(assignment < case.queries, -1)
    loss_mask, loss_dice = mask_loss(embed, features, targets, assignment)
    (20 * loss_mask + loss_dice).sum().backward()
    assert embed.grad is not None
    assert features.grad is not None
    return cost, loss_mask.detach(), loss_dice.detach(), embed.grad, features.grad


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_further_from_the_truth_than_plain_pytorch(
    case: Case, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    with use_backend("reference"):
        truth = everything(case, dtype, torch.float64, layout)
        plain = everything(case, dtype, dtype, layout)
    with use_backend("native"):
        ours = everything(case, dtype, dtype, layout)
        again = everything(case, dtype, dtype, layout)
    for result, same, exact, repeated in zip(ours, plain, truth, again, strict=True):
        assert torch.equal(result, repeated), "must be deterministic"
        slack = 8 * 2**-23 * exact.abs().max()
        assert (result - exact).abs().max() <= 2 * (same - exact).abs().max() + slack


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cost_of_large_losses(case: Case, dtype: torch.dtype) -> None:
    """Of the second pass over pixels: differences of sums would be too coarse."""
    targets = case.targets().to("cuda")

    def cost(compute: torch.dtype) -> Tensor:
        class_logits, embed, features = case.predictions()
        inputs = (class_logits, embed * 100, features)
        return matching_cost(*(x.to(dtype).to(compute).cuda() for x in inputs), targets)

    with use_backend("reference"):
        truth, plain = cost(torch.float64), cost(dtype)
    with use_backend("native"):
        ours = cost(dtype)
    slack = 8 * 2**-23 * truth.abs().max()
    assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + slack
