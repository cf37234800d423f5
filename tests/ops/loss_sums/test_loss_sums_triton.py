"""The Triton kernel of the sums of losses in the interpreter, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.gpu.interpreter import assert_as_exact
from torch import Tensor
from torch.utils._pytree import tree_map

from mfkernels import MaskFormerCriterion
from mfkernels.criterion import LossesWithTotal
from mfkernels.ops.loss_sums import reference as oracle
from mfkernels.ops.loss_sums.operator import summed

WEIGHTS = (2.0, 20.0, 0.5)


def inputs(shape: tuple[int, int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    segments = [torch.rand(shape, generator=generator) for _ in range(2)]
    layers = [torch.rand(shape[0], generator=generator) + 1 for _ in range(2)]
    return [*segments, *layers]


def with_gradients(losses_of: Any, given: list[Tensor], grads: tuple[Any, Any]) -> list[Tensor]:
    """Losses, total and gradients, where those of the losses and of the total are `grads`."""
    leaves = [x.clone().requires_grad_(index < 3) for index, x in enumerate(given)]
    losses, total = losses_of(*leaves)
    pairs = [(x, g) for x, g in zip((losses, total), grads, strict=True) if g is not None]
    torch.autograd.backward([x for x, _ in pairs], [g.to(x.dtype) for x, g in pairs])
    found = [x.grad for x in leaves[:3]]
    return [losses.detach(), total.detach(), *(x for x in found if x is not None)]


def plain(*given: Tensor, num_masks: float = 7.0) -> tuple[Tensor, Tensor]:
    losses = oracle.loss_sums(*given, num_masks)
    return losses, sum(w * x.sum() for w, x in zip(WEIGHTS, losses, strict=True))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 3, 9), (2, 70, 30), (3, 2, 0)])
def test_losses_total_and_gradients(shape: tuple[int, int, int], as_tensor: bool) -> None:
    given = inputs(shape)
    num_masks = torch.tensor(7.0) if as_tensor else 7
    slopes = torch.rand(3, shape[0]), torch.tensor(1.5)
    for grads in (slopes, (None, slopes[1]), (slopes[0], None)):
        truth = with_gradients(plain, [x.double() for x in given], grads)
        same_precision = with_gradients(plain, given, grads)
        ours = with_gradients(lambda *x: summed(*x, num_masks, WEIGHTS), given, grads)
        some = [index for index, x in enumerate(truth) if x.numel() > 0]
        assert_as_exact(*([of[index] for index in some] for of in (ours, same_precision, truth)))


def test_second_derivatives() -> None:
    given = [x.requires_grad_(index < 3) for index, x in enumerate(inputs((2, 2, 3)))]
    slope = torch.ones((), requires_grad=True)
    _, total = summed(*given, 7.0, WEIGHTS)
    gradients = torch.autograd.grad(total, given[:3], slope, create_graph=True)
    (again,) = torch.autograd.grad(sum(x.sum() for x in gradients), slope)
    assert again.item() == pytest.approx(sum(x.sum().item() for x in gradients), rel=1e-6)


def test_the_criterion_takes_the_total_of_unchanged_losses() -> None:
    criterion = MaskFormerCriterion(3, class_weight=2.0, mask_weight=20.0, dice_weight=0.5)
    losses, total = summed(*inputs((2, 2, 3)), 7.0, WEIGHTS)
    names = ("loss_ce", "loss_mask", "loss_dice")
    by_name = {f"{name}_{i}": losses[k, i] for i in range(2) for k, name in enumerate(names)}
    given = LossesWithTotal(by_name, total, WEIGHTS)
    assert criterion.total(given) is total
    torch.testing.assert_close(criterion.total(dict(given)), total)
    given["loss_ce_0"] = 2 * given["loss_ce_0"]
    assert criterion.total(given) > total
    del given["loss_ce_0"]
    assert criterion.total(given) < total
    in_place = LossesWithTotal({k: x.detach().clone() for k, x in by_name.items()}, total, WEIGHTS)
    in_place["loss_mask_0"] *= 0
    torch.testing.assert_close(criterion.total(in_place), total - 20 * by_name["loss_mask_0"])
    with torch.inference_mode():
        in_place = LossesWithTotal({k: x.clone() for k, x in by_name.items()}, total, WEIGHTS)
        in_place["loss_mask_0"] *= 0
        torch.testing.assert_close(criterion.total(in_place), total - 20 * by_name["loss_mask_0"])
    # As accelerate and Lightning carry results along, and PyTorch looks for tensors in them.
    moved = LossesWithTotal({name: loss.double() for name, loss in by_name.items()})
    assert moved.total_of(WEIGHTS) is None
    assert LossesWithTotal(pair for pair in by_name.items()) == by_name  # DataParallel's way
    doubled = tree_map(lambda x: 2 * x, LossesWithTotal(by_name, total, WEIGHTS))
    assert isinstance(doubled, LossesWithTotal)
    assert all(torch.equal(doubled[name], 2 * loss) for name, loss in by_name.items())
    assert doubled.total_of(WEIGHTS) is None
    unchanged = LossesWithTotal(by_name, total, WEIGHTS)
    criterion.weights["loss_dice"] = 1.0
    assert criterion.total(unchanged) > total
