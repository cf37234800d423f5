"""Focal and dice loss: known values, torchvision, float64, gradients, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from mfkernels import dice_loss, focal_dice_loss, sigmoid_focal_loss


def pair(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.rand(shape, generator=generator) < 0.4
    return logits.to(dtype), targets


def truth(x: float, y: float, alpha: float, gamma: float) -> float:
    p = 1 / (1 + math.exp(-x))
    weight = 1 if alpha < 0 else alpha * y + (1 - alpha) * (1 - y)
    p_t = p * y + (1 - p) * (1 - y)
    return -weight * (1 - p_t) ** gamma * (y * math.log(p) + (1 - y) * math.log(1 - p))


def test_at_zero() -> None:
    losses = sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert losses.tolist() == pytest.approx([0.0433217, 0.1299651], abs=5e-8)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_is_torchvisions(alpha: float, gamma: float, reduction: str) -> None:
    logits, targets = pair(3, 4, 5)
    results: list[tuple[Tensor, Tensor]] = []
    for function in (sigmoid_focal_loss, torchvision_focal_loss):
        x = logits.clone().requires_grad_()
        loss = function(x, targets.float(), alpha, gamma, reduction)
        loss.sum().backward()
        assert x.grad is not None
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@given(
    x=st.floats(-20, 20),
    y=st.sampled_from([0.0, 0.3, 1.0]),
    alpha=st.sampled_from([-1.0, 0.25, 0.9]),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]),
)
@settings(deadline=None)
def test_against_scalar_arithmetic(x: float, y: float, alpha: float, gamma: float) -> None:
    loss = sigmoid_focal_loss(
        torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64), alpha, gamma
    )
    assert loss.item() == pytest.approx(truth(x, y, alpha, gamma), rel=1e-6, abs=1e-12)


def test_pair_against_scalar_arithmetic() -> None:
    logits, targets = pair(3, 2, 7, dtype=torch.float64)
    loss_mask, loss_dice = focal_dice_loss(logits, targets, num_masks=2.5)
    focal, dice = 0.0, 0.0
    for x_row, y_row in zip(logits.flatten(1).tolist(), targets.flatten(1).tolist(), strict=True):
        focal += sum(truth(x, y, 0.25, 2) for x, y in zip(x_row, y_row, strict=True)) / 14
        s = [1 / (1 + math.exp(-x)) for x in x_row]
        overlap = sum(p * y for p, y in zip(s, y_row, strict=True))
        dice += 1 - (2 * overlap + 1) / (sum(s) + sum(y_row) + 1)
    assert loss_mask.item() == pytest.approx(focal / 2.5, rel=1e-12)
    assert loss_dice.item() == pytest.approx(dice / 2.5, rel=1e-12)
    assert dice_loss(logits, targets, 2.5).item() == loss_dice.item()
    assert dice_loss(logits, targets).item() == pytest.approx(dice / 3, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients(gamma: float) -> None:
    logits, targets = pair(2, 6, dtype=torch.float64)
    logits.requires_grad_()

    def losses(x: Tensor) -> tuple[Tensor, ...]:
        return (sigmoid_focal_loss(x, targets, gamma=gamma), *focal_dice_loss(x, targets, 3, 0.4))

    assert torch.autograd.gradcheck(losses, logits)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_saturated_logits_have_finite_gradients(gamma: float) -> None:
    logits = torch.tensor([[-1e4, -200.0, 200.0, 1e4] * 2]).requires_grad_()
    targets = torch.tensor([[1.0] * 4 + [0.0] * 4])
    loss_mask, loss_dice = focal_dice_loss(logits, targets, gamma=gamma)
    (loss_mask + loss_dice).backward()
    assert logits.grad is not None
    assert torch.isfinite(torch.stack([loss_mask, loss_dice])).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, targets = pair(4, 3000, dtype=dtype)
    exact = focal_dice_loss(logits.double(), targets)
    for half, wide in zip(focal_dice_loss(logits, targets), exact, strict=True):
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(wide.item(), rel=1e-5)
    loss = sigmoid_focal_loss(logits, targets)
    assert loss.dtype == dtype
    assert torch.equal(loss, sigmoid_focal_loss(logits.float(), targets).to(dtype))


def test_autocast_changes_nothing() -> None:
    logits, targets = pair(2, 5)
    expected = focal_dice_loss(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert focal_dice_loss(logits, targets) == expected


def test_strides_do_not_matter() -> None:
    logits, targets = pair(4, 3, 5)
    strided = logits.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not strided.is_contiguous()
    assert focal_dice_loss(strided, targets) == focal_dice_loss(logits, targets)


def test_nothing_to_compare() -> None:
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss_mask, loss_dice = focal_dice_loss(logits, torch.zeros(0, 4, 4))
    (loss_mask + loss_dice).backward()
    assert loss_mask.item() == loss_dice.item() == 0
    assert logits.grad is not None
    assert sigmoid_focal_loss(torch.zeros(0), torch.zeros(0), reduction="sum").item() == 0


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "logits must have a floating", lambda x, y: sigmoid_focal_loss(x.long(), y)),
        (ValueError, r"shape of logits, \[2, 3\], got \[2\]", lambda x, y: dice_loss(x, y[:, 0])),
        (ValueError, "targets must be on cpu", lambda x, y: dice_loss(x, y.to("meta"))),
        (ValueError, "gamma must be at least 0", lambda x, y: sigmoid_focal_loss(x, y, 0.25, -1)),
        (ValueError, "alpha must be at most 1", lambda x, y: focal_dice_loss(x, y, alpha=2)),
        (ValueError, "reduction must be", lambda x, y: sigmoid_focal_loss(x, y, reduction="max")),
        (ValueError, r"logits must be \[M, ...\]", lambda x, y: dice_loss(x[0], y[0])),
        (ValueError, "at least one element a mask", lambda x, y: dice_loss(x[:, :0], y[:, :0])),
    ],
)
def test_errors(
    error: type[Exception], match: str, call: Callable[[Tensor, Tensor], object]
) -> None:
    with pytest.raises(error, match=match):
        call(torch.zeros(2, 3), torch.zeros(2, 3))
