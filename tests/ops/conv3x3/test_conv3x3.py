"""Convolutions of 3 x 3 beside PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from helpers.backends import each_backend, native_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mfkernels import conv3x3, use_backend
from mfkernels.backend import BackendError
from mfkernels.ops.conv3x3 import is_faster

served_by = each_backend("conv3x3")

EPS = torch.finfo(torch.float32).eps


def make(
    batch: int = 2,
    channels: int = 32,
    out_channels: int = 48,
    size: tuple[int, int] = (9, 6),
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, weights and bias."""
    generator = torch.Generator().manual_seed(channels + 3 * out_channels)
    shapes = ((batch, channels, *size), (out_channels, channels, 3, 3), (out_channels,))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)  # type: ignore[return-value]


def gradients(result: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(result.shape, generator=generator).to(result)
    return [result, *torch.autograd.grad(result, inputs, factor)]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 17), (40, 37)])
@pytest.mark.parametrize("channels", [(16, 16), (48, 80), (16, 112)])
def test_is_pytorchs(channels: tuple[int, int], size: tuple[int, int]) -> None:
    """Results and gradients in float64, also of more tiles than a task and a block hold."""
    inputs = tuple(x.requires_grad_() for x in make(2, *channels, size))
    ours = gradients(conv3x3(*inputs), inputs)
    plain = gradients(F.conv2d(*inputs, padding=1), inputs)
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(conv3x3(*inputs[:2]), F.conv2d(*inputs[:2], padding=1))


@given(
    st.integers(1, 3),
    st.sampled_from([16, 64, 208]),
    st.sampled_from([16, 96]),
    st.tuples(st.integers(1, 23), st.integers(1, 23)),
    st.floats(-12, 12),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@native_only
def test_rounding_errors(
    batch: int, channels: int, out_channels: int, size: tuple[int, int], magnitude: float
) -> None:
    """In float32, beside exact results: at most six times those of PyTorch's sum."""
    x, weight, bias = make(batch, channels, out_channels, size)
    scale = 10**magnitude
    inputs = tuple(v.float().requires_grad_() for v in (x * scale, weight, bias * scale))
    ours = gradients(conv3x3(*inputs), inputs)
    plain = gradients(F.conv2d(*inputs, padding=1), inputs)
    exact_inputs = tuple(v.detach().double().requires_grad_() for v in inputs)
    exact = gradients(F.conv2d(*exact_inputs, padding=1), exact_inputs)
    for found, other, expected in zip(ours, plain, exact, strict=True):
        allowed = 6 * (other - expected).norm() + 4 * EPS * expected.norm()
        assert (found - expected).norm() <= allowed


def test_gradients_and_those_of_gradients() -> None:
    inputs = tuple(x.requires_grad_() for x in make(1, 16, 16, (2, 3)))
    assert torch.autograd.gradcheck(conv3x3, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(conv3x3, inputs, fast_mode=True)
    x, weight, bias = (value.detach() for value in inputs)
    mixed = (x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(), bias.float())
    (slope,) = torch.autograd.grad(conv3x3(*mixed).square().sum(), mixed[0], create_graph=True)
    assert [g.dtype for g in torch.autograd.grad(slope.sum(), mixed[:2])] == [torch.bfloat16] * 2


def test_only_some_gradients() -> None:
    x, weight, bias = make()
    for needed in range(3):
        inputs = [x.clone(), weight.clone(), bias.clone()]
        inputs[needed].requires_grad_()
        plain = torch.autograd.grad(F.conv2d(*inputs, padding=1).sum(), inputs[needed])
        ours = torch.autograd.grad(conv3x3(*inputs).sum(), inputs[needed])
        torch.testing.assert_close(ours, plain)


@native_only
def test_any_strides() -> None:
    x, weight, bias = make()
    expected = F.conv2d(x, weight, bias, padding=1)
    cut = torch.zeros(2, 40, 12, 9, dtype=x.dtype)
    cut[:, 3:35, 2:11, 1:7] = x
    for maps in (cut[:, 3:35, 2:11, 1:7], x.mT.contiguous().mT):
        for weights in (weight.contiguous(memory_format=torch.channels_last), weight.mT.clone().mT):
            torch.testing.assert_close(conv3x3(maps, weights, bias), expected)
    found = conv3x3(x, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert F.relu_(found).min() == 0  # a result of its own, which may change in place


@native_only
def test_the_number_of_threads_changes_nothing() -> None:
    x, weight, bias = make(3, 64, 64, (33, 29), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            grad = torch.ops.mfkernels.conv3x3_weight_grad(x, x)
            results.append([conv3x3(x, weight, bias), grad])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@native_only
def test_not_finite_stays_where_it_is_read() -> None:
    """An infinity spoils the tiles that read it, in which PyTorch's has it too; no others."""
    x, weight, _ = make(1, 16, 16, (16, 16), torch.float32)
    x[0, 3, 9, 9] = torch.inf
    ours, plain = conv3x3(x, weight), F.conv2d(x, weight, padding=1)
    assert not ours.isfinite()[~plain.isfinite()].any()
    torch.testing.assert_close(ours[..., :8, :8], plain[..., :8, :8], rtol=0, atol=1e-4)


@native_only
def test_operators_are_well_made_and_compile() -> None:
    x, weight, bias = (value.requires_grad_() for value in make(dtype=torch.float32))
    torch.library.opcheck(torch.ops.mfkernels.conv3x3.default, (x, weight, bias))
    maps = torch.randn(2, 48, 9, 6)
    torch.library.opcheck(torch.ops.mfkernels.conv3x3_weight_grad.default, (maps, x.detach()))
    compiled = torch.compile(conv3x3, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), conv3x3(x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, weight, bias), conv3x3(x, weight, bias))
    torch.library.opcheck(torch.ops.mfkernels.conv3x3.default, (x.bfloat16(), weight, bias))
    torch.library.opcheck(
        torch.ops.mfkernels.conv3x3_weight_grad.default,
        (maps.bfloat16(), x.detach().bfloat16()),
    )


@native_only
def test_no_image_and_no_pixel() -> None:
    _, weight, bias = make(dtype=torch.float32)
    for shape in ((0, 32, 4, 4), (2, 32, 0, 4)):
        x = torch.zeros(shape, requires_grad=True)
        result = conv3x3(x, weight.requires_grad_(), bias)
        assert result.shape == (shape[0], 48, *shape[2:])
        result.sum().backward()
        assert weight.grad is not None
        assert not weight.grad.any()


def test_what_no_kernel_serves_is_pytorchs(served_by: str) -> None:
    x, weight, bias = make(dtype=torch.float32)
    others = {
        "channels are not both multiples of 16": (x[:, :7], weight[:, :7], bias),
        "expected float32, bfloat16 or float64": (x.half(), weight.half(), bias.half()),
    }
    for reason, inputs in others.items():
        with use_backend("auto"):
            torch.testing.assert_close(conv3x3(*inputs), F.conv2d(*inputs, padding=1))
        if served_by == "native":
            with pytest.raises(BackendError, match=reason):
                conv3x3(*inputs)
    with use_backend("auto"), torch.autocast("cpu", torch.float16):
        assert conv3x3(x, weight, bias).dtype == torch.float16


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(9, 6), (24, 40)])
def test_bfloat16(size: tuple[int, int], weights: torch.dtype, served_by: str) -> None:
    """Beside exact results no further than PyTorch's, gradients in the dtypes of their inputs."""
    x, weight, bias = make(2, 64, 48, size)
    inputs = tuple(v.requires_grad_() for v in (x.bfloat16(), weight.to(weights), bias.to(weights)))
    ours = gradients(conv3x3(*inputs), inputs)
    plain = gradients(F.conv2d(inputs[0], *(v.bfloat16() for v in inputs[1:]), padding=1), inputs)
    exact_inputs = tuple(v.detach().double().requires_grad_() for v in inputs)
    exact_result = F.conv2d(*exact_inputs, padding=1)
    exact = gradients(exact_result, exact_inputs)
    assert ours[0].dtype == torch.bfloat16
    for found, other, expected in zip(ours, plain, exact, strict=True):
        assert found.dtype == other.dtype
        allowed = 1.05 * (other.double() - expected).norm() + EPS * expected.norm()
        assert (found.double() - expected).norm() <= allowed


@native_only
def test_bfloat16_that_is_not_finite() -> None:
    x, weight, bias = make(1, 16, 16, (8, 8), torch.float32)
    x[0, 0, 0, 0], x[0, 0, 7, 7], bias[1] = torch.nan, torch.inf, 3e38
    found = conv3x3(x.bfloat16(), weight, bias)
    plain = F.conv2d(x, weight, bias, padding=1)
    assert not found.isfinite()[~plain.isfinite()].any()
    assert found[0, :, 0, 0].isnan().all()
    torch.testing.assert_close(found[0, 1, :4, 4:], plain[0, 1, :4, 4:].bfloat16())


def test_autocast_mixes_no_float64() -> None:
    wide = X.double(), WEIGHT.double()
    with torch.autocast("cpu", torch.bfloat16):
        for inputs in ((X, wide[1]), (wide[0], WEIGHT), (X, WEIGHT, torch.zeros(16).double())):
            with pytest.raises(TypeError, match=r"must be torch\.float"):
                conv3x3(*inputs)


def test_autocast(served_by: str) -> None:
    inputs = tuple(v.requires_grad_() for v in make(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        ours = conv3x3(*inputs)
        plain = F.conv2d(*inputs, padding=1)
        assert conv3x3(*(v.double() for v in inputs)).dtype == torch.float64
    assert ours.dtype == torch.bfloat16
    for found, expected in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() <= 2**-7 * expected.norm()


def test_where_it_is_faster() -> None:
    x, weight = torch.empty(2, 64, 32, 32), torch.empty(128, 64, 3, 3)
    with_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert is_faster(x, weight) == with_vectors
    few = [
        (x[..., :31], weight),
        (x[0], weight),
        (x[:, :48], weight[:, :48]),
        (x.double(), weight.double()),
    ]
    for other in (*few, (x.to("meta"), weight.to("meta")), (x, weight[:100])):
        assert not is_faster(*other)
    large, wide = torch.empty(1, 96, 64, 128), torch.empty(96, 96, 3, 3)
    units = torch.cpu._is_amx_tile_supported()
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_faster(x, weight)
        assert is_faster(large, wide) == (with_vectors and not units)
    assert is_faster(large.bfloat16(), wide) == (with_vectors and not units)
    assert not is_faster(large.half(), wide.half())


X, WEIGHT = torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "x must be a torch.Tensor, got list", ([], WEIGHT)),
        (TypeError, "x must have a floating-point dtype", (X.long(), WEIGHT)),
        (TypeError, "weight must have a floating-point dtype", (X, WEIGHT.bool())),
        (ValueError, r"x must be \[B, C, h, w\], got \[16, 4, 4\]", (X[0], WEIGHT)),
        (ValueError, r"weight must be \[O, 16, 3, 3\], got \[16, 8, 3, 3\]", (X, WEIGHT[:, :8])),
        (ValueError, r"weight must be \[O, 16, 3, 3\]", (X, WEIGHT[..., :1])),
        (ValueError, r"bias must be \[16\], got \[8\]", (X, WEIGHT, torch.zeros(8))),
        (ValueError, "weight must be on cpu", (X, WEIGHT.to("meta"))),
        (
            TypeError,
            "weight must be torch.float32 to match x, got torch.float64",
            (X, WEIGHT.double()),
        ),
        (TypeError, "weight must be torch.float64 to match x", (X.double(), WEIGHT)),
        (TypeError, "bias must be torch.float32", (X, WEIGHT, torch.zeros(16).bfloat16())),
        (
            TypeError,
            "weight must be torch.bfloat16 or torch.float32",
            (X.bfloat16(), WEIGHT.half()),
        ),
    ],
)
def test_errors(error: type[Exception], match: str, arguments: tuple[Tensor, ...]) -> None:
    with pytest.raises(error, match=match):
        conv3x3(*arguments)
