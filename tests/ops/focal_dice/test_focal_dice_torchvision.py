"""The contract of torchvision's focal loss: keyword, values, scripts; numbers in tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as theirs

from mfkernels import (
    SegmentTargets,
    focal_dice_loss,
    mask_loss,
    point_loss,
    sigmoid_focal_loss,
    use_backend,
)
from mfkernels.backend import BackendError
from mfkernels.criterion import MaskFormerCriterion

# PyTorch itself says so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.* is deprecated", "ignore::torch.jit.TracerWarning"
)

REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


@pytest.fixture(params=["native", "reference"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def logits_and_targets(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(40, 9, generator=generator, dtype=dtype)
    targets = torch.rand(40, 9, generator=generator, dtype=dtype)
    targets[:20] = targets[:20].round()
    return logits.requires_grad_(), targets


@REDUCTIONS
@pytest.mark.parametrize("alpha", [-1, 0, 0.58, 1])
@pytest.mark.parametrize("gamma", [0, 0.5, 2])
class TestContract:
    def test_values_and_gradients(self, alpha: float, gamma: float, reduction: str) -> None:
        logits, targets = logits_and_targets()
        options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
        ours = sigmoid_focal_loss(inputs=logits, targets=targets, **options)
        expected = theirs(inputs=logits, targets=targets, **options)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
        if gamma == 0:
            assert torch.equal(ours, expected)
        if reduction == "none":
            entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            assert (ours <= entropy + (2e-6 if gamma else 0)).all()

    def test_scripts(self, alpha: float, gamma: float, reduction: str) -> None:
        logits, targets = logits_and_targets()
        options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
        eager = sigmoid_focal_loss(logits, targets, **options)
        script = torch.jit.script(sigmoid_focal_loss)
        torch.testing.assert_close(script(logits, targets, **options), eager, rtol=1e-5, atol=1e-6)
        half = script(logits.bfloat16(), targets, **options)
        assert half.dtype == torch.bfloat16


def scripted(inputs: Tensor, targets: Tensor) -> Tensor:
    return sigmoid_focal_loss(inputs, targets, reduction="sum") + 1


def test_a_script_that_calls_it() -> None:
    logits, targets = logits_and_targets()
    torch.testing.assert_close(
        torch.jit.script(scripted)(logits, targets), scripted(logits, targets)
    )
    script = torch.jit.script(sigmoid_focal_loss)
    with pytest.raises(torch.jit.Error, match="Invalid reduction"):
        script(logits, targets, reduction="max")
    with pytest.raises(torch.jit.Error, match="gamma must be at least 0"):
        script(logits, targets, gamma=-1.0)


def test_traces() -> None:
    logits, targets = logits_and_targets()
    traced = torch.jit.trace(lambda x, y: sigmoid_focal_loss(x, y), (logits, targets))
    other = logits_and_targets(seed=1)
    torch.testing.assert_close(traced(*other), sigmoid_focal_loss(*other))


def test_the_earlier_keyword_warns() -> None:
    logits, targets = logits_and_targets()
    with pytest.warns(FutureWarning, match="logits is now called inputs"):
        ours = sigmoid_focal_loss(logits=logits, targets=targets)
    assert torch.equal(ours, sigmoid_focal_loss(logits, targets))


def test_wrong_reduction() -> None:
    with pytest.raises(ValueError, match="Invalid reduction 'xyz'"):
        sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), 0.25, 2, "xyz")


def points(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    where = torch.rand(1, 30, 2, generator=torch.Generator().manual_seed(0), dtype=logits.dtype)
    return point_loss(logits[None], targets[None], where, **options)[0]


LOSSES: list[Callable[..., Tensor]] = [
    lambda *args, **options: sigmoid_focal_loss(*args, reduction="mean", **options),
    lambda *args, **options: sigmoid_focal_loss(*args, **options).sum(),
    lambda *args, **options: focal_dice_loss(*args, **options)[0],
    points,
]


@pytest.mark.parametrize("loss", LOSSES)
class TestNumbersInTensors:
    def test_constants(self, loss: Callable[..., Tensor]) -> None:
        pair = logits_and_targets()
        ours = loss(*pair, alpha=torch.tensor(0.3), gamma=torch.tensor([1.5]))
        torch.testing.assert_close(ours, loss(*pair, alpha=0.3, gamma=1.5))

    def test_learnt_ones(self, loss: Callable[..., Tensor], backend: str) -> None:
        pair = logits_and_targets(dtype=torch.float64)
        numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 1.5)]
        call = lambda alpha, gamma: loss(*pair, alpha=alpha, gamma=gamma)  # noqa: E731
        if backend == "native":
            with pytest.raises(BackendError, match="alpha needs a gradient, which only plain"):
                call(*numbers)
        with use_backend("auto"):
            assert torch.autograd.gradcheck(call, numbers)

    def test_weights_by_class(self, loss: Callable[..., Tensor]) -> None:
        for name in ("alpha", "gamma"):
            with pytest.raises(TypeError, match=rf"{name} must be one number, .* shape \[9\]"):
                loss(*logits_and_targets(), **{name: torch.ones(9)})


def test_a_number_that_nobody_would_learn() -> None:
    gamma = torch.nn.Parameter(torch.tensor(2.0))
    with pytest.raises(TypeError, match="gamma must be a number here, as it would get no gradient"):
        MaskFormerCriterion(3, gamma=gamma)
    targets = SegmentTargets.from_masks([torch.ones(1, 4, 4)], [torch.tensor([0])])
    with pytest.raises(TypeError, match="alpha must be a number here"):
        mask_loss(torch.zeros(1, 2, 4, 4), None, targets, torch.tensor([[0]]), alpha=gamma)
