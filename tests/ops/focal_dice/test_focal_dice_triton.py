"""Triton kernels of focal_dice in the interpreter, against the oracle in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.gpu.interpreter import assert_as_exact
from torch import Tensor

from mfkernels.ops.focal_dice import reference as oracle
from mfkernels.ops.focal_dice import triton_launch as kernels

OPTIONS = [(0.25, 2.0), (-1.0, 0.5), (0.6, 0.0), (0.25, 3.5)]


def problem(rows: int, elements: int, kind: str = "bool") -> tuple[Tensor, Tensor]:
    """Logits from sure to wrong, and targets: bool, numbers from 0 to 1, or 0 and 1."""
    generator = torch.Generator().manual_seed(rows * 1000 + elements)
    logits = 6 * torch.randn(rows, elements, generator=generator)
    targets = torch.rand(rows, elements, generator=generator)
    return logits, targets if kind == "soft" else (targets < 0.3).to(getattr(torch, kind))


def of_oracle(
    logits: Tensor, targets: Tensor, weights: Tensor, options: tuple[float, float]
) -> list[Tensor]:
    """Focal, dice and the gradient of their weighted sum, in the dtype of `logits`."""
    logits = logits.clone().requires_grad_()
    losses = oracle.focal_dice_loss(logits, targets.to(logits.dtype), *options)
    sum((loss * weight).sum() for loss, weight in zip(losses, weights, strict=True)).backward()
    assert logits.grad is not None
    return [losses[0].detach(), losses[1].detach(), logits.grad]


def of_kernels(
    logits: Tensor, targets: Tensor, weights: Tensor, options: tuple[float, float]
) -> list[Tensor]:
    focal, dice, sums = kernels.focal_dice(logits, targets, *options)
    gradients = (weights[0].float(), weights[1].float())
    gradient = kernels.focal_dice_backward(*gradients, sums, logits, targets, *options)
    return [focal, dice, gradient]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["bool", "soft", "float16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (2, 4101)])
def test_losses_and_gradient(
    shape: tuple[int, int], kind: str, options: tuple[float, float]
) -> None:
    logits, targets = problem(*shape, kind)
    weights = torch.rand(2, shape[0], dtype=torch.float64)
    truth = of_oracle(logits.double(), targets, weights, options)
    plain = of_oracle(logits, targets, weights, options)
    assert_as_exact(of_kernels(logits, targets, weights, options), plain, truth)


def test_sums_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = problem(3, 50, "soft")
    sigmoid = logits.double().sigmoid()
    truth = torch.stack([(sigmoid * targets).sum(1), sigmoid.sum(1), targets.double().sum(1)], 1)
    monkeypatch.setattr(kernels, "CHUNK", 32)
    monkeypatch.setattr(kernels, "BLOCK", 16)
    _, _, sums = kernels.focal_dice(logits, targets, 0.25, 2.0)
    torch.testing.assert_close(sums.double(), truth, rtol=1e-6, atol=0)
    weights = torch.rand(2, 3, dtype=torch.float64)
    truths = of_oracle(logits.double(), targets, weights, (0.25, 2.0))
    plain = of_oracle(logits, targets, weights, (0.25, 2.0))
    assert_as_exact(of_kernels(logits, targets, weights, (0.25, 2.0)), plain, truths)


@pytest.mark.parametrize("rows", [0, 2])
def test_without_rows_and_in_strides(rows: int) -> None:
    logits, targets = problem(max(rows, 1), 12)
    logits, targets = logits[:rows], targets[:rows]
    weights = torch.rand(2, rows, dtype=torch.float64)
    expected = of_kernels(logits, targets, weights, (0.25, 2.0))
    strided = of_kernels(
        logits.t().contiguous().t(), targets.t().contiguous().t(), weights, (0.25, 2.0)
    )
    assert [part.shape for part in expected] == [(rows,), (rows,), (rows, 12)]
    assert all(torch.equal(result, same) for result, same in zip(strided, expected, strict=True))


def test_sure_logits_have_finite_gradients() -> None:
    logits = torch.tensor([[-1e4, 1e4, -100.0, 100.0, 0.0]]).repeat(2, 1)
    targets = torch.stack([torch.zeros(5), torch.ones(5)])
    weights = torch.ones(2, 2, dtype=torch.float64)
    for gamma in (0.0, 0.5, 2.0):
        ours = of_kernels(logits, targets, weights, (0.25, gamma))
        truth = of_oracle(logits.double(), targets, weights, (0.25, gamma))
        for result, exact in zip(ours, truth, strict=True):
            torch.testing.assert_close(result.double(), exact, rtol=2e-6, atol=1e-12)
    assert of_kernels(logits * torch.nan, targets, weights, (0.25, 2.0))[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, targets = problem(2, 100)
    logits, weights = logits.to(dtype), torch.rand(2, 2, dtype=torch.float64)
    *losses, gradient = of_kernels(logits, targets, weights, (0.25, 2.0))
    *wide, expected = of_kernels(logits.float(), targets, weights, (0.25, 2.0))
    assert all(torch.equal(result, same) for result, same in zip(losses, wide, strict=True))
    assert torch.equal(gradient, expected.to(dtype))
    assert kernels.sigmoid_focal_loss(logits, targets, 0.25, 2.0).dtype == dtype


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["bool", "soft"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5, 7)])
def test_elements(shape: tuple[int, ...], kind: str, options: tuple[float, float]) -> None:
    logits, targets = (x.reshape(-1)[: torch.Size(shape).numel()] for x in problem(3, 35, kind))
    logits, targets = logits.reshape(shape), targets.reshape(shape)
    loss = kernels.sigmoid_focal_loss(logits, targets, *options)
    grad = torch.rand(shape, dtype=torch.float64)
    assert loss.shape == shape

    def of_oracle(logits: Tensor, grad: Tensor) -> list[Tensor]:
        logits = logits.clone().requires_grad_()
        loss = oracle.sigmoid_focal_loss(logits, targets.to(logits.dtype), *options)
        (gradient,) = torch.autograd.grad(loss, logits, grad.to(logits.dtype))
        return [loss.detach(), gradient]

    if loss.numel() == 0:
        return
    for given in (grad, torch.full((), 0.3, dtype=torch.float64).expand(shape)):
        ours = kernels.sigmoid_focal_loss_backward(given.float(), logits, targets, *options)
        assert_as_exact([loss, ours], of_oracle(logits, given), of_oracle(logits.double(), given))


def test_float64_is_refused() -> None:
    logits, targets = problem(2, 3)
    for function in (kernels.focal_dice, kernels.sigmoid_focal_loss):
        with pytest.raises(TypeError, match="takes float32, bfloat16 and float16, got"):
            function(logits.double(), targets, 0.25, 2.0)
