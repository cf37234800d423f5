"""The losses of layers in plain PyTorch."""

from __future__ import annotations

import torch

from mfkernels.ops.loss_sums import loss_sums


def test_losses_of_layers() -> None:
    focal, dice = torch.rand(2, 4, 3, 5)
    class_loss, class_weight = torch.rand(4), torch.rand(4) + 1
    losses, total = loss_sums(focal, dice, class_loss, class_weight, 15, (1.0, 20.0, 1.0))
    expected = [class_loss / class_weight, focal.mean((1, 2)), dice.mean((1, 2))]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert total is None, "on a CPU it costs what the caller's own sum does"


def test_a_divisor_that_is_learnt() -> None:
    focal, dice, num_masks = torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.tensor(3.0)
    num_masks.requires_grad_()
    losses, _ = loss_sums(focal, dice, torch.rand(2), torch.ones(2), num_masks, (1.0, 1.0, 1.0))
    (gradient,) = torch.autograd.grad(losses[1:].sum(), num_masks)
    torch.testing.assert_close(gradient, -(focal.sum() + dice.sum()) / 9)
