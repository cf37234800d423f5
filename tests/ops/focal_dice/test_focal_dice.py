"""Focal and dice loss: known values, torchvision, float64, gradients, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.backends import each_backend, native_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from mfkernels import dice_loss, focal_dice_loss, point_loss, sigmoid_focal_loss, use_backend

served_by = each_backend("focal_dice")


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
    """As close to float64 as torchvision's in float32, in values and gradients."""
    logits, targets = pair(3, 4, 5)
    factors = torch.arange(1.0, 61).view(3, 4, 5) if reduction == "none" else torch.tensor(2.0)

    def results(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.to(dtype).clone().requires_grad_()
        loss = function(x, targets.to(dtype), alpha, gamma, reduction)
        assert loss.dtype == dtype
        (loss * factors).sum().backward()
        assert x.grad is not None
        return loss.detach().double(), x.grad.double()

    truth = results(torchvision_focal_loss, torch.float64)
    theirs = results(torchvision_focal_loss, torch.float32)
    for ours, plain, exact in zip(
        results(sigmoid_focal_loss, torch.float32), theirs, truth, strict=True
    ):
        assert ours.shape == exact.shape
        allowed = 2 * (plain - exact).norm() + 3e-7 * exact.norm()
        assert (ours - exact).norm() <= allowed


@given(
    x=st.floats(-20, 20),
    y=st.sampled_from([0.0, 0.3, 1.0]),
    alpha=st.sampled_from([-1.0, 0.25, 0.9]),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def random_points(masks: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some of them at the edges and beyond."""
    generator = torch.Generator().manual_seed(3)
    points = 1.4 * torch.rand(masks, count, 2, generator=generator, dtype=torch.float64) - 0.2
    points[:, 0] = torch.tensor([0.0, 1.0])
    return points.to(dtype)


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("low", [(5, 7), (1, 1), (9, 2)])
def test_points_are_sampled_as_grid_sample_does(boolean: bool, low: tuple[int, int]) -> None:
    logits, _ = pair(3, *low, dtype=torch.float64)
    targets = pair(3, 11, 8, seed=1)[1]
    values = targets if boolean else targets * 0.7
    points = random_points(3, 40, torch.float64)
    grid = (2 * points - 1)[:, :, None]

    def sampled(images: Tensor) -> Tensor:
        images = images[:, None].double()
        return torch.nn.functional.grid_sample(images, grid, align_corners=False)[:, 0, :, 0]

    x, y = (logits.clone().requires_grad_() for _ in range(2))
    ours = point_loss(x, values, points, 2.5, 0.25, 2.0)
    exact = focal_dice_loss(sampled(y), sampled(values), 2.5, 0.25, 2.0)
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-14)
    for losses in (ours, exact):
        (losses[0] + 3 * losses[1]).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-14)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(sampled(y), sampled(values))
    torch.testing.assert_close(point_loss(x, values, points)[0], plain, rtol=1e-10, atol=0)


def test_points_in_float32_and_half_precision() -> None:
    logits, _ = pair(4, 16, 20)
    targets = pair(4, 50, 61, seed=1)[1]
    points = random_points(4, 700)
    exact = point_loss(logits.double(), targets, points)
    for dtype in (torch.float32, torch.bfloat16):
        x = logits.to(dtype).clone().requires_grad_()
        losses = point_loss(x, targets, points)
        sum(losses).backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        for ours, truth in zip(losses, exact, strict=True):
            assert ours.dtype == torch.float32
            precision = 2e-6 if dtype == torch.float32 else 5e-3
            assert ours.item() == pytest.approx(truth.item(), rel=precision)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, -1])
def test_nan_stays_nan_whatever_its_bits(bits: int) -> None:
    nan = torch.tensor([[bits & 0x7FFFFFFF]], dtype=torch.int32).view(torch.float32)
    assert nan.isnan().all()
    targets = torch.ones(1, 1)
    assert sigmoid_focal_loss(nan, targets).isnan().all()
    assert all(loss.isnan() for loss in focal_dice_loss(nan, targets, gamma=0.5))


@native_only
def test_a_point_that_is_no_number_gives_no_number() -> None:
    logits, targets = pair(1, 4, 4)
    outside = torch.tensor([[[torch.inf, 0.5], [1e30, -1e30]]])
    loss_mask, _ = point_loss(logits, targets, outside)
    assert loss_mask.item() == pytest.approx(math.log(2))
    nowhere = torch.tensor([[[torch.nan, 0.5], [0.5, 0.5]]])
    assert all(loss.isnan() for loss in point_loss(logits, targets, nowhere))


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_points_there_is_no_gradient(dtype: torch.dtype) -> None:
    logits, targets = (x.to(dtype) for x in pair(7, 33, 20))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grads, points = torch.ones(2, 7, dtype=wide), torch.zeros(7, 0, 2, dtype=wide)
    sums, options = torch.zeros(7, 3, dtype=wide), (-1.0, 0.0)
    torch.full_like(logits, 7.0)  # what memory of that size held before
    gradient = torch.ops.mfkernels.point_loss_backward(
        *grads, sums, logits, targets, points, *options
    )
    assert (gradient == 0).all()


def test_targets_that_need_a_gradient_are_served_in_plain_pytorch(served_by: str) -> None:
    logits, targets = pair(2, 5)
    soft = (targets * 0.5).requires_grad_()
    if served_by == "native":
        with pytest.raises(RuntimeError, match="targets need a gradient"):
            focal_dice_loss(logits, soft)
    with use_backend("auto"):
        sum(focal_dice_loss(logits, soft)).backward()
    assert soft.grad is not None


@native_only
def test_operators_are_well_made() -> None:
    logits, targets = pair(3, 50)
    for y in (targets, targets.float()):
        x = logits.clone().requires_grad_()
        torch.library.opcheck(torch.ops.mfkernels.focal_dice.default, (x, y, 0.25, 2.0))
        torch.library.opcheck(torch.ops.mfkernels.sigmoid_focal_loss.default, (x, y, 0.25, 2.0))
    images = pair(3, 4, 5)[0].requires_grad_()
    arguments = (images, pair(3, 9, 8)[1], random_points(3, 6), -1.0, 0.0)
    torch.library.opcheck(torch.ops.mfkernels.point_loss.default, arguments)
    grads = torch.rand(2, 3)
    with torch.no_grad():
        sums = torch.ops.mfkernels.focal_dice(logits, targets, 0.25, 2.0)[2]
        backward = (*grads, sums, logits, targets, 0.25, 2.0)
        torch.library.opcheck(torch.ops.mfkernels.focal_dice_backward.default, backward)
        each = (torch.rand_like(logits), logits, targets, 0.25, 2.0)
        torch.library.opcheck(torch.ops.mfkernels.sigmoid_focal_loss_backward.default, each)
        sums = torch.ops.mfkernels.point_loss(*arguments)[2]
        torch.library.opcheck(
            torch.ops.mfkernels.point_loss_backward.default, (*grads, sums, *arguments)
        )


@native_only
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("shape", [(5, 1), (3, 511), (2, 40_000)])
def test_native_is_as_exact_as_plain_pytorch(gamma: float, shape: tuple[int, int]) -> None:
    logits, targets = pair(*shape)
    some_soft = torch.where(torch.rand(shape) < 0.02, 0.4, targets)
    for values in (targets, targets * 0.9, some_soft, targets.to(torch.float16)):
        results: list[list[Tensor]] = []
        for dtype, backend in (
            (torch.float64, "reference"),
            (torch.float32, "reference"),
            (torch.float32, "native"),
        ):
            x = logits.to(dtype).clone().requires_grad_()
            with use_backend(backend):
                losses = focal_dice_loss(x, values, 1.0, gamma=gamma)
            sum(losses).backward()
            assert x.grad is not None
            results.append([*losses, x.grad])
        for exact, plain, ours in zip(*results, strict=True):
            allowed = 2 * (plain - exact).norm() + 2e-6 * exact.norm()
            assert (ours - exact).norm() <= allowed


@native_only
def test_neither_threads_nor_uninitialised_memory_change_a_bit() -> None:
    """Deterministic mode fills new tensors with NaN."""
    logits, targets = pair(3, 100_003)
    images, points = pair(3, 30, 40)[0], random_points(3, 500)
    threads = torch.get_num_threads()
    results: list[list[Tensor]] = []
    try:
        for count, deterministic in ((1, False), (2, False), (3, True)):
            torch.set_num_threads(count)
            torch.use_deterministic_algorithms(deterministic)
            x, z = (values.clone().requires_grad_() for values in (logits, images))
            each = sigmoid_focal_loss(x, targets)
            losses = [*focal_dice_loss(x, targets), *point_loss(z, images > 0, points)]
            (torch.stack(losses).sum() + each.sum()).backward()
            assert x.grad is not None
            assert z.grad is not None
            results.append([*losses, each, x.grad, z.grad])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_one_loss_alone_has_the_same_gradient() -> None:
    logits, targets = pair(2, 30, dtype=torch.float64)
    gradients = []
    for chosen in (lambda pair: pair[0], lambda pair: pair[1], sum):
        x = logits.clone().requires_grad_()
        chosen(focal_dice_loss(x, targets)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


@native_only
@pytest.mark.parametrize("loss", [sigmoid_focal_loss, focal_dice_loss, point_loss])
def test_a_gradient_has_a_gradient(loss: Callable[..., object]) -> None:
    images, targets = pair(2, 3, 4)
    x = images.requires_grad_()
    more = (random_points(2, 5),) if loss is point_loss else ()
    result = loss(x, targets, *more)
    total = sum(part.sum() for part in result) if isinstance(result, tuple) else result.sum()
    (plain,) = torch.autograd.grad(total, x, retain_graph=True)
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    torch.testing.assert_close(gradient.detach(), plain)
    assert torch.autograd.grad(gradient.sum(), x)[0].any()


@native_only
def test_compiles_into_one_graph() -> None:
    images, targets = pair(2, 6, 7)
    points = random_points(2, 9)

    def losses(x: Tensor) -> Tensor:
        pairs = focal_dice_loss(x, targets), point_loss(x, targets, points)
        return sum(map(sum, pairs)) + sigmoid_focal_loss(x, targets).mean()

    results = []
    for function in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
        x = images.clone().requires_grad_()
        total = function(x)
        total.backward()
        results.append((total.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (
            ValueError,
            r"logits must be \[M, height, width\]",
            lambda x, y, p: point_loss(x[0], y, p),
        ),
        (ValueError, "hold 2 masks like logits, got 1", lambda x, y, p: point_loss(x, y[:1], p)),
        (ValueError, r"points must be \[2, P, 2\]", lambda x, y, p: point_loss(x, y, p[:, :0])),
        (TypeError, "points must have a floating", lambda x, y, p: point_loss(x, y, p.long())),
        (ValueError, "points must be on cpu", lambda x, y, p: point_loss(x, y, p.to("meta"))),
    ],
)
def test_errors_of_points(
    error: type[Exception], match: str, call: Callable[[Tensor, Tensor, Tensor], object]
) -> None:
    with pytest.raises(error, match=match):
        call(torch.zeros(2, 3, 4), torch.zeros(2, 6, 6), torch.zeros(2, 5, 2))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "logits must have a floating", lambda x, y: sigmoid_focal_loss(x.long(), y)),
        (ValueError, r"shape of logits, \[2, 3\], got \[2\]", lambda x, y: dice_loss(x, y[:, 0])),
        (ValueError, "targets must be on cpu", lambda x, y: dice_loss(x, y.to("meta"))),
        (
            TypeError,
            "targets must be a torch.Tensor, got ndarray",
            lambda x, y: dice_loss(x, y.numpy()),
        ),
        (ValueError, "gamma must be at least 0", lambda x, y: sigmoid_focal_loss(x, y, 0.25, -1)),
        (ValueError, "alpha must be at most 1", lambda x, y: focal_dice_loss(x, y, alpha=2)),
        (ValueError, "reduction must be", lambda x, y: sigmoid_focal_loss(x, y, reduction="max")),
        (ValueError, r"logits must be \[M, ...\]", lambda x, y: dice_loss(x[0], y[0])),
        (ValueError, "at least one element per mask", lambda x, y: dice_loss(x[:, :0], y[:, :0])),
    ],
)
def test_errors(
    error: type[Exception], match: str, call: Callable[[Tensor, Tensor], object]
) -> None:
    with pytest.raises(error, match=match):
        call(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy(number: type[np.floating]) -> None:
    logits, targets = pair(2, 3)
    expected = sigmoid_focal_loss(logits, targets, 0.25, 2.0)
    loss = sigmoid_focal_loss(logits, targets, number(0.25), number(2))  # type: ignore[arg-type]
    assert torch.equal(loss, expected)
    with pytest.raises(ValueError, match="gamma must be finite, got inf"):
        sigmoid_focal_loss(logits, targets, 0.25, number("inf"))  # type: ignore[arg-type]
