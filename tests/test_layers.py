"""Layers given one by one are one tensor, without a copy where they lie side by side."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels import MaskFormerCriterion
from mfkernels.layers import stack_layers


def test_slices_of_one_tensor_are_not_copied() -> None:
    whole = torch.rand(4, 2, 3, 5, requires_grad=True)
    layers = whole.mT.unbind()
    found = stack_layers(layers, 0)
    assert found is not None
    assert found.data_ptr() == whole.data_ptr()
    assert torch.equal(found, whole.mT)
    weights = torch.rand(found.shape)
    (found * weights).sum().backward()
    assert whole.grad is not None
    torch.testing.assert_close(whole.grad, weights.mT)
    every_other = stack_layers(whole[::2].unbind(), 0)
    assert every_other is not None
    assert torch.equal(every_other, whole[::2])


@pytest.mark.parametrize(
    "layers",
    [
        [torch.rand(2, 3), torch.rand(2, 3)],
        torch.rand(3, 2, 2).flip(0)[[2, 0, 1]].unbind()[::-1],
        [torch.rand(2, 3), torch.rand(2, 4)],
        [torch.rand(2, 3), torch.rand(2, 3).half()],
        [torch.rand(2, 2)] * 2,
        [torch._neg_view(x) if index == 1 else x for index, x in enumerate(torch.rand(3, 2, 2))],
    ],
)
def test_what_does_not_lie_side_by_side(layers: list[Tensor]) -> None:
    assert stack_layers(layers, 0) is None
    alike = len({(x.shape, x.dtype) for x in layers}) == 1
    copied = stack_layers(layers, math.inf)
    assert (copied is not None) == alike
    if copied is not None:
        assert torch.equal(copied, torch.stack(list(layers)))


def test_layers_that_change_before_the_backward_pass() -> None:
    """Each of these layers counts its own changes."""
    whole = torch.rand(3, 2, requires_grad=True)
    layers = (1 * whole).unsafe_chunk(3)
    found = stack_layers(layers, 0)
    assert found is not None
    layers[1].detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_the_criterion_is_the_same_for_slices_and_for_others() -> None:
    case = Case(layers=4, counts=(3, 0, 2))
    class_logits, embed, features = case.predictions()
    logits = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    criterion = MaskFormerCriterion(case.classes)
    results = []
    for slices in (True, False):
        whole = [x.clone().requires_grad_() for x in (logits, class_logits)]
        layers = [[y if slices else y.clone() for y in x.unbind()] for x in whole]
        named = [{"pred_masks": x, "pred_logits": y} for x, y in zip(*layers, strict=True)]
        losses = criterion({**named[-1], "aux_outputs": named[:-1]}, case.targets())
        criterion.total(losses).backward()
        results.append([*losses.values(), *(x.grad for x in whole)])
    for some, others in zip(*results, strict=True):
        torch.testing.assert_close(some, others)
