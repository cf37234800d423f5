"""Images at points: by hand, grid_sample, gradients, edges, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.backends import each_backend, native_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mfkernels import sample_points
from mfkernels.ops.sample_points.reference import gathered_points

served_by = each_backend("sample_points")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def points_in(count: int, each: int) -> Tensor:
    """Some at the edges and beyond."""
    generator = torch.Generator().manual_seed(1)
    points = 1.4 * torch.rand(count, each, 2, generator=generator, dtype=torch.float64) - 0.2
    points[:, :1] = torch.tensor([0.0, 1.0])
    return points


def test_by_hand() -> None:
    image = torch.tensor([[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]], dtype=torch.float64)
    points = torch.tensor([[[0.5, 0.25], [0.5, 0.5], [1 / 3, 0.25], [0.0, 0.0], [-0.2, 0.5]]])
    expected = [2.0, 9.0, 1.5, 0.25, 0.0]
    assert sample_points(image, points.double())[0].tolist() == pytest.approx(expected)
    inside = sample_points(image > 3, points.double())[0]
    assert inside.tolist() == pytest.approx([0.0, 0.5, 0.0, 0.0, 0.0], abs=1e-12)


@given(
    count=st.integers(0, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    each=st.sampled_from([0, 1, 7, 511, 513]),
    shared=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.bool]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@native_only
def test_equals_grid_sample(
    count: int, size: tuple[int, int], each: int, shared: bool, dtype: torch.dtype
) -> None:
    images = draw(count, *size)
    images = images > 0 if dtype == torch.bool else images.to(dtype)
    points = points_in(1 if shared else count, max(each, 1))[:, :each]
    exact = torch.zeros(count, each, dtype=torch.float64)
    if count and each:
        grid = (2 * points - 1)[:, None].expand(count, -1, -1, -1)
        exact = F.grid_sample(images[:, None].double(), grid, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(sample_points(images, points), exact, rtol=1e-12, atol=1e-12)
    narrow = sample_points(images, points.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients(shared: bool) -> None:
    images = draw(2, 3, 4).requires_grad_()
    points = points_in(1 if shared else 2, 9)
    assert torch.autograd.gradcheck(lambda x: sample_points(x, points), images)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize(
    ("coordinate", "expected"), [(torch.nan, torch.nan), (torch.inf, 0.0), (-torch.inf, 0.0)]
)
def test_points_that_are_not_finite(coordinate: float, expected: float, boolean: bool) -> None:
    """docs/not_finite.md; plain PyTorch gathers bools, and inside of torch.func everything."""
    images, points = draw(2, 3, 4), points_in(2, 5)
    images = images > 0 if boolean else images
    truth = sample_points(images, points)
    points[1, 2, 1] = coordinate
    truth[1, 2] = expected
    torch.testing.assert_close(sample_points(images, points), truth, equal_nan=True)
    gathered = gathered_points(images, points)
    torch.testing.assert_close(gathered, truth, equal_nan=True)
    if not boolean:
        others, x = points.clone(), images.clone().requires_grad_()
        others[1, 2] = 7.0
        weight = torch.ones(2, 5).double()
        weight[1, 2] = torch.nan  # as after a loss that is NaN
        for sample in (sample_points, gathered_points):
            (gradient,) = torch.autograd.grad(sample(x, points), x, weight)
            (exact,) = torch.autograd.grad(sample(x, others), x, torch.ones(2, 5).double())
            torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_come_in_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    images = draw(2, 6, 5).to(dtype).requires_grad_()
    points = points_in(2, 600).float()
    weight = draw(2, 600).float()
    (gradient,) = torch.autograd.grad((sample_points(images, points) * weight).sum(), images)
    wide = images.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad((sample_points(wide, points) * weight).sum(), wide)
    assert gradient.dtype == dtype
    error = (gradient.double() - exact).norm() / exact.norm()
    assert error <= 2 * torch.finfo(dtype).eps


def test_strides_do_not_matter() -> None:
    images, points = draw(3, 5, 6), points_in(3, 20)
    odd = images.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.testing.assert_close(sample_points(odd, points), sample_points(images, points))


def test_what_lies_outside_is_not_read() -> None:
    images = torch.full((1, 3, 4), torch.inf)
    points = torch.tensor([[[2.0, 2.0], [-1.0, 0.5]]])
    assert sample_points(images, points).tolist() == [[0.0, 0.0]]
    corner = torch.zeros(1, 2, 2)
    corner[0, 0, 0] = torch.inf
    assert sample_points(corner, torch.tensor([[[0.01, 0.01]]])).isinf().all()


def test_points_have_no_gradient() -> None:
    images, points = draw(2, 3, 4), points_in(2, 5).requires_grad_()
    assert not sample_points(images, points).requires_grad
    assert not sample_points(images > 0, points).requires_grad


@native_only
def test_threads_do_not_change_a_bit() -> None:
    images, points = draw(5, 30, 40).float(), points_in(5, 2000).float()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            x = images.clone().requires_grad_()
            values = sample_points(x, points)
            results.append((values.detach(), torch.autograd.grad(values.sum(), x)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@native_only
def test_operators_are_well_made() -> None:
    images, points = draw(2, 4, 5).float().requires_grad_(), points_in(2, 6).float()
    operators = torch.ops.mfkernels
    torch.library.opcheck(operators.sample_points.default, (images, points))
    torch.library.opcheck(operators.sample_points.default, (images.detach() > 0, points[:1]))
    backward = (torch.rand(2, 6), images.detach(), points)
    torch.library.opcheck(operators.sample_points_backward.default, backward)
    square = sample_points(images, points).square().sum()
    (plain,) = torch.autograd.grad(square, images, retain_graph=True)
    (gradient,) = torch.autograd.grad(square, images, create_graph=True)
    torch.testing.assert_close(gradient, plain)
    assert torch.autograd.grad(gradient.sum(), images)[0].any()
    compiled = torch.compile(sample_points, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, points), sample_points(images, points))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "images must have a floating", lambda x, p: sample_points(x.long(), p)),
        (TypeError, "points must have a floating", lambda x, p: sample_points(x, p.long())),
        (ValueError, r"images must be \[M, height", lambda x, p: sample_points(x[0], p)),
        (ValueError, r"points must be \[3, P, 2\]", lambda x, p: sample_points(x, p[:2])),
        (ValueError, "points must be on cpu", lambda x, p: sample_points(x, p.to("meta"))),
    ],
)
def test_errors(
    error: type[Exception], match: str, call: Callable[[Tensor, Tensor], object]
) -> None:
    with pytest.raises(error, match=match):
        call(torch.zeros(3, 4, 5), torch.zeros(3, 6, 2))
