"""Group norms beside PyTorch's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.backends import each_backend, native_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mfkernels import group_norm, use_backend
from mfkernels.backend import BackendError
from mfkernels.ops.group_norm import is_faster

served_by = each_backend("group_norm")

EPS = torch.finfo(torch.float32).eps
Inputs = tuple[Tensor, Tensor, Tensor]


def make(
    batch: int = 2,
    channels: int = 32,
    size: tuple[int, int] = (9, 6),
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Maps, weight and bias."""
    generator = torch.Generator().manual_seed(channels)
    shapes = ((batch, channels, *size), (channels,), (channels,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x.contiguous(memory_format=torch.channels_last), weight, bias


def ours(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 4, relu: bool = True) -> Tensor:
    return group_norm(x, groups, weight, bias, relu=relu)


def pytorchs(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 4, relu: bool = True) -> Tensor:
    y = F.group_norm(x, groups, weight, bias)
    return F.relu(y) if relu else y


def with_gradients(result: Tensor, inputs: Inputs, where: Tensor | bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(result.shape, generator=generator).to(result) * where
    return [result, *torch.autograd.grad(result, inputs, factor)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 17), (23, 37)])
@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (48, 3), (48, 48), (112, 14)])
@pytest.mark.usefixtures("served_by")
def test_is_pytorchs(channels: int, groups: int, size: tuple[int, int], relu: bool) -> None:
    """Results and gradients in float64, also of more pixels than a task has."""
    x, weight, bias = (v.requires_grad_() for v in make(2, channels, size))
    inputs = (x, weight, bias)
    found = with_gradients(ours(*inputs, groups, relu), inputs)
    expected = with_gradients(pytorchs(*inputs, groups, relu), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@given(
    st.integers(1, 3),
    st.sampled_from([(16, 2), (64, 32), (208, 13)]),
    st.tuples(st.integers(2, 23), st.integers(1, 23)),
    st.floats(-3, 3),
    st.floats(-1e3, 1e3),
    st.booleans(),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@native_only
def test_rounding_errors(
    batch: int,
    widths: tuple[int, int],
    size: tuple[int, int],
    magnitude: float,
    mean: float,
    relu: bool,
) -> None:
    """In float32, beside exact results: at most twice those of PyTorch."""
    x, weight, bias = make(batch, widths[0], size)
    given_inputs = ((x + mean) * 10**magnitude, weight, bias)
    inputs = tuple(v.float().requires_grad_() for v in given_inputs)
    exact_inputs = tuple(v.detach().double().requires_grad_() for v in inputs)
    # Where rounding may decide whether a value is negative, the gradients are not comparable.
    clear = pytorchs(*exact_inputs, widths[1], False).detach().abs() > 1e-2  # type: ignore[arg-type]
    found, other, exact = (
        with_gradients(norm(*of, widths[1], relu), of, clear)  # type: ignore[arg-type]
        for norm, of in ((ours, inputs), (pytorchs, inputs), (pytorchs, exact_inputs))
    )
    for a, b, truth in zip(found, other, exact, strict=True):
        assert (a - truth).norm() <= 2 * (b - truth).norm() + 8 * EPS * truth.norm()


@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("channels", [1, 32])
@pytest.mark.parametrize("pixel", [0, 1, 64 * 32 + 32, -1])
@native_only
def test_one_pixel_unlike_all_others(pixel: int, channels: int, outlier: float) -> None:
    """Wherever it is, as sums of squares of differences from it would lose the variance."""
    x, weight, bias = make(1, 32, (64, 64), torch.float32)
    x.permute(0, 2, 3, 1).reshape(-1, 32)[pixel, :channels] = outlier  # a view
    exact = pytorchs(x.double(), weight.double(), bias.double(), relu=False)
    error = ours(x, weight, bias, relu=False) - exact
    assert error.norm() <= 16 * EPS * exact.norm()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.usefixtures("served_by")
def test_gradients_and_those_of_gradients(relu: bool) -> None:
    inputs = tuple(v.requires_grad_() for v in make(2, 16, (2, 3)))
    function = partial(ours, relu=relu)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.usefixtures("served_by")
def test_only_some_gradients() -> None:
    for needed in range(3):
        inputs = [v.clone() for v in make()]
        inputs[needed].requires_grad_()
        found = torch.autograd.grad(ours(*inputs).square().sum(), inputs[needed])
        # Before torch 2.14, PyTorch crashes on channels-last maps that need no gradient.
        x, *parameters = inputs
        y = pytorchs(x.contiguous(), *parameters)
        torch.testing.assert_close(found, torch.autograd.grad(y.square().sum(), inputs[needed]))


@native_only
def test_any_strides_of_gradients_and_parameters() -> None:
    x, weight, bias = (v.requires_grad_() for v in make())
    spread = torch.zeros(64, dtype=x.dtype)
    spread[::2] = weight.detach()
    found, expected = ours(x, spread[::2], bias), pytorchs(x, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    slopes = torch.randn(2, 40, 6, 9, dtype=x.dtype)[:, 3:35].mT
    for factor in (slopes, slopes.contiguous(), torch.ones(1, dtype=x.dtype).expand_as(found)):
        torch.testing.assert_close(
            torch.autograd.grad(found, (x, bias), factor, retain_graph=True),
            torch.autograd.grad(expected, (x, bias), factor, retain_graph=True),
        )
    assert found.detach().add_(1).min() == 1  # a result of its own, which may change in place


@native_only
def test_the_number_of_threads_changes_nothing() -> None:
    inputs = tuple(v.requires_grad_() for v in make(3, 64, (33, 29), torch.float32))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(with_gradients(ours(*inputs), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (0, 5, 8, 3)])
@pytest.mark.usefixtures("served_by")
def test_not_finite_spoils_its_group(value: float, place: tuple[int, ...]) -> None:
    x, weight, bias = make(dtype=torch.float32)
    x[place] = value
    inputs = tuple(v.requires_grad_() for v in (x, weight, bias))
    found = with_gradients(ours(*inputs), inputs)
    expected = with_gradients(pytorchs(*inputs), inputs)
    assert found[0].isnan().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


@native_only
def test_operators_are_well_made_and_compile() -> None:
    x, weight, bias = (v.requires_grad_() for v in make(dtype=torch.float32))
    operators = torch.ops.mfkernels
    for maps in (x, x.detach().bfloat16().requires_grad_()):
        torch.library.opcheck(operators.group_norm.default, (maps, weight, bias, 4, 1e-5, True))
        _, mean, inverse_std = operators.group_norm(maps, weight, bias, 4, 1e-5, True)
        inputs = (maps, mean, inverse_std, maps, weight, bias)
        plain = tuple(v.detach() for v in inputs)
        torch.library.opcheck(operators.group_norm_backward.default, (*plain, 4, True))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), ours(x, weight, bias))


@native_only
def test_a_constant_group_becomes_its_bias() -> None:
    x, weight, bias = make(dtype=torch.float32)
    x[0, :8] = 1000.1
    found = group_norm(x, 4, weight, bias, 1e-2)
    assert torch.equal(found[0, :8], bias[:8, None, None].expand(8, 9, 6))
    exact = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-2)
    torch.testing.assert_close(found, exact.float())


def test_what_no_kernel_serves_is_pytorchs(served_by: str) -> None:
    x, weight, bias = make(dtype=torch.float32)
    others: dict[str, Inputs] = {
        "24 channels are not a multiple of 16": (x[:, :24], weight[:24], bias[:24]),
        "expected float32, bfloat16 or float64": (x.half(), weight.half(), bias.half()),
        r"x is empty, \[0, 32, 9, 6\]": (x[:0], weight, bias),
        "x does not have channels last in memory": (x.contiguous(), weight, bias),
    }
    for reason, inputs in others.items():
        with use_backend("auto"):
            torch.testing.assert_close(ours(*inputs), pytorchs(*inputs))
        if served_by == "native":
            with pytest.raises(BackendError, match=reason):
                ours(*inputs)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_bfloat16(parameters: torch.dtype, relu: bool, served_by: str) -> None:
    """Beside exact results no further than PyTorch's, gradients in the dtypes of their inputs."""
    x, weight, bias = make(2, 64, (24, 40))
    inputs = tuple(
        v.requires_grad_() for v in (x.bfloat16(), weight.to(parameters), bias.to(parameters))
    )
    found = with_gradients(ours(*inputs, relu=relu), inputs)  # type: ignore[misc]
    other = with_gradients(pytorchs(*inputs, relu=relu), inputs)  # type: ignore[misc]
    exact_inputs = tuple(v.detach().double().requires_grad_() for v in inputs)
    exact = with_gradients(pytorchs(*exact_inputs, relu=relu), exact_inputs)  # type: ignore[misc]
    for a, b, truth in zip(found, other, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - truth).norm() <= 1.05 * (b - truth).norm() + 4 * EPS * truth.norm()


@pytest.mark.usefixtures("served_by")
def test_autocast_changes_no_dtype() -> None:
    x, weight, bias = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x, weight, bias).dtype == pytorchs(x, weight, bias).dtype == torch.float32
        assert ours(x.bfloat16(), weight, bias).dtype == torch.bfloat16


def test_where_it_is_faster() -> None:
    x = make(dtype=torch.float32)[0]
    with_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    for maps in (x, x.bfloat16()):
        assert is_faster(maps) == with_vectors
    for other in (x.contiguous(), x[0], x[:, :24], x.double(), x.half(), x.to("meta"), x[:0]):
        assert not is_faster(other)


X, WEIGHT = torch.zeros(1, 16, 4, 4), torch.zeros(16)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "x must be a torch.Tensor, got list", ([], 4, WEIGHT, WEIGHT)),
        (TypeError, "x must have a floating-point dtype", (X.long(), 4, WEIGHT, WEIGHT)),
        (ValueError, r"x must be \[B, C, h, w\], got \[16, 4, 4\]", (X[0], 4, WEIGHT, WEIGHT)),
        (ValueError, "num_groups must divide the 16 channels, got 3", (X, 3, WEIGHT, WEIGHT)),
        (ValueError, "num_groups must divide the 16 channels, got 0", (X, 0, WEIGHT, WEIGHT)),
        (TypeError, "num_groups must be an integer, got 4.0", (X, 4.0, WEIGHT, WEIGHT)),
        (TypeError, "num_groups must be an integer, got None", (X, None, WEIGHT, WEIGHT)),
        (ValueError, r"weight must be \[16\], got \[8\]", (X, 4, WEIGHT[:8], WEIGHT)),
        (ValueError, r"bias must be \[16\], got \[1, 16\]", (X, 4, WEIGHT, WEIGHT[None])),
        (ValueError, "bias must be on cpu", (X, 4, WEIGHT, WEIGHT.to("meta"))),
        (TypeError, "weight must be torch.float32 to match x", (X, 4, WEIGHT.double(), WEIGHT)),
        (TypeError, "weight must have a floating-point dtype", (X, 4, WEIGHT.long(), WEIGHT)),
    ],
)
def test_errors(
    error: type[Exception], match: str, arguments: tuple[Any, Any, Tensor, Tensor]
) -> None:
    with pytest.raises(error, match=match):
        group_norm(*arguments)
