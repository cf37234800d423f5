"""Window attention beside the windows of timm's Swin, and beside plain PyTorch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.backends import each_backend, native_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mfkernels import use_backend, window_attention
from mfkernels.backend import BackendError
from mfkernels.ops.window_attention import is_faster
from mfkernels.ops.window_attention.reference import window_attention as in_pytorch

served_by = each_backend("window_attention")

EPS = torch.finfo(torch.float32).eps
Pair = tuple[int, int]
Inputs = tuple[Tensor, Tensor, Tensor]
"""qkv, padding, bias"""


def make(
    size: Pair = (9, 11),
    heads: int = 2,
    window: Pair = (4, 5),
    channels: int = 16,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    generator = torch.Generator().manual_seed(size[0])
    tokens = window[0] * window[1]
    shapes = (
        (batch, *size, 3, heads, channels),
        (3, heads, channels),
        (heads, tokens, tokens),
    )
    qkv, padding, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return qkv, padding, bias


def ours(inputs: Inputs, window: Pair = (4, 5), shift: Pair = (2, 3)) -> Tensor:
    qkv, padding, bias = inputs
    return window_attention(qkv, bias, window, shift, padding)


def of_single_tokens(inputs: Inputs, window: Pair, shift: Pair) -> Tensor:
    """The definition: which tokens share a window is found one by one."""
    qkv, padding, bias = inputs
    batch, height, width, _, heads, channels = qkv.shape
    rows, columns = -(-height // window[0]), -(-width // window[1])
    result = torch.zeros(batch, height, width, heads, channels, dtype=qkv.dtype)
    for row in range(rows):
        for column in range(columns):
            places, parts = [], []
            for i in range(window[0]):
                for j in range(window[1]):
                    y, x = row * window[0] + i + shift[0], column * window[1] + j + shift[1]
                    parts.append((y >= rows * window[0], x >= columns * window[1]))
                    places.append((y % (rows * window[0]), x % (columns * window[1])))
            tokens = torch.stack(
                [
                    qkv[:, y, x] if y < height and x < width else padding.expand(batch, -1, -1, -1)
                    for y, x in places
                ],
                dim=1,
            )
            q, k, v = tokens.permute(2, 0, 3, 1, 4)
            apart = torch.tensor([[-100.0 * (a != b) for b in parts] for a in parts])
            scores = q @ k.mT / channels**0.5 + bias + apart.to(qkv.dtype)
            attended = (scores.softmax(-1) @ v).transpose(1, 2)
            for place, (y, x) in enumerate(places):
                if y < height and x < width:
                    result[:, y, x] = attended[:, place]
    return result


def slopes(result: Tensor) -> Tensor:
    return torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(result)


def with_gradients(result: Tensor, inputs: Inputs) -> list[Tensor]:
    given_slopes = slopes(result)
    return [result, *torch.autograd.grad(result, inputs, given_slopes, materialize_grads=True)]


def ready(inputs: Inputs) -> Inputs:
    """Leaves that require gradients."""
    qkv, padding, bias = (v.detach().clone().requires_grad_() for v in inputs)
    return qkv, padding, bias


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((8, 10), (4, 5), (0, 0)),
        ((8, 10), (4, 5), (2, 3)),
        ((9, 11), (4, 5), (1, 4)),
        ((9, 11), (4, 5), (3, 0)),
        ((3, 2), (4, 5), (2, 2)),
        ((1, 1), (7, 7), (3, 3)),
        ((20, 3), (1, 1), (0, 0)),
        ((17, 33), (2, 3), (0, 1)),  # more windows than a task has
    ],
)
@pytest.mark.usefixtures("served_by")
def test_is_attention_among_tokens_of_a_window(size: Pair, window: Pair, shift: Pair) -> None:
    """Results and gradients in float64; heads of 16 and of 48 channels."""
    for channels in (16, 48):
        inputs = ready(make(size, 2, window, channels))
        found = with_gradients(ours(inputs, window, shift), inputs)
        expected = with_gradients(of_single_tokens(inputs, window, shift), inputs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    st.sampled_from([16, 32, 80]),
    st.integers(1, 3),
    st.floats(-2, 1),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@native_only
def test_rounding_errors(
    size: Pair,
    window: Pair,
    share: tuple[float, float],
    channels: int,
    heads: int,
    magnitude: float,
) -> None:
    """In float32, beside exact results: at most twice those of PyTorch, or those that follow from
    rounding of scores, which is relative to the lengths of queries and keys, and of the gradients
    of probabilities, whose differences may cancel.
    """
    shift = (int(share[0] * window[0]), int(share[1] * window[1]))
    qkv, padding, bias = make(size, heads, window, channels, 1)
    exact_inputs = ready((qkv * 10**magnitude, padding, bias))
    inputs = ready(tuple(v.float() for v in exact_inputs))  # type: ignore[arg-type]
    exact_inputs = ready(tuple(v.double() for v in inputs))  # type: ignore[arg-type]
    found = with_gradients(ours(inputs, window, shift), inputs)
    other = with_gradients(in_pytorch(*inputs, *window, *shift), inputs)
    exact = with_gradients(in_pytorch(*exact_inputs, *window, *shift), exact_inputs)
    q, k, v = (
        torch.cat([part.flatten(0, -2) for part in parts]).norm(dim=-1).max()
        for parts in zip(exact_inputs[0].unbind(3), exact_inputs[1], strict=True)
    )
    scores = q * k / channels**0.5
    of_scores = slopes(exact[0]).norm(dim=-1).max() * v * (1 + scores)
    of_qkv = of_scores * torch.maximum(q, k) / channels**0.5
    floors = (v * scores, of_qkv, of_qkv, of_scores)
    for a, b, truth, floor in zip(found, other, exact, floors, strict=True):
        assert (a - truth).norm() <= 2 * (b - truth).norm() + 8 * EPS * (truth.norm() + floor)


@pytest.mark.usefixtures("served_by")
def test_gradients_and_those_of_gradients() -> None:
    inputs = ready(make((3, 4), 1, (2, 3), batch=1))
    function = lambda *v: ours(v, (2, 3), (1, 1))  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.usefixtures("served_by")
def test_only_some_gradients() -> None:
    for needed in range(3):
        inputs = make()
        leaf = inputs[needed].requires_grad_()
        found = torch.autograd.grad(ours(inputs).square().sum(), leaf)
        expected = torch.autograd.grad(in_pytorch(*inputs, 4, 5, 2, 3).square().sum(), leaf)
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("served_by")
def test_without_padding_it_is_zero() -> None:
    qkv, padding, bias = make()
    found = window_attention(qkv, bias, (4, 5), (2, 3))
    torch.testing.assert_close(found, ours((qkv, torch.zeros_like(padding), bias)))
    assert torch.equal(
        window_attention(qkv, bias, (4, 5)), ours((qkv, 0 * padding, bias), (4, 5), (0, 0))
    )


@native_only
def test_any_strides() -> None:
    inputs = make()
    qkv, padding, bias = inputs
    turned = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    other = (turned, padding.mT.contiguous().mT, bias.mT.contiguous().mT)
    assert torch.equal(ours(other), ours(inputs))
    leaves = ready(inputs)
    slopes = torch.randn(2, 9, 11, 16, 2, dtype=qkv.dtype).mT
    for factor in (slopes, torch.ones(1, dtype=qkv.dtype).expand(2, 9, 11, 2, 16)):
        torch.testing.assert_close(
            torch.autograd.grad(ours(leaves), leaves, factor),
            torch.autograd.grad(in_pytorch(*leaves, 4, 5, 2, 3), leaves, factor),
        )


@native_only
def test_the_number_of_threads_changes_nothing() -> None:
    inputs = ready(make((37, 40), 3, dtype=torch.float32))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 30):
            torch.set_num_threads(count)
            results.append(with_gradients(ours(inputs), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@native_only
def test_an_image_does_not_depend_on_its_batch() -> None:
    qkv, padding, bias = make((13, 9), batch=3, dtype=torch.float32)
    alone = [ours((image[None], padding, bias)) for image in qkv]
    assert torch.equal(ours((qkv, padding, bias)), torch.cat(alone))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.usefixtures("served_by")
def test_not_finite_spoils_what_it_spoils_in_pytorch(value: float, which: int) -> None:
    inputs = make(dtype=torch.float32)
    inputs[0][1, 3, 4, which, 1, 5] = value
    leaves = ready(inputs)
    found = with_gradients(ours(leaves), leaves)
    expected = with_gradients(in_pytorch(*leaves, 4, 5, 2, 3), leaves)
    assert not found[0].isfinite().all() or which < 2
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@native_only
def test_large_scores() -> None:
    """Differences of thousands between scores, and masks that they outweigh."""
    qkv, padding, bias = make(dtype=torch.float32)
    inputs = (100 * qkv, padding, bias)
    exact = in_pytorch(*(v.double() for v in inputs), 4, 5, 2, 3)
    torch.testing.assert_close(ours(inputs).double(), exact, rtol=1e-4, atol=1e-2)


@native_only
def test_operators_are_well_made_and_compile() -> None:
    numbers = (4, 5, 2, 3)
    operators = torch.ops.mfkernels
    for dtype in (torch.float32, torch.bfloat16):
        qkv, padding, bias = ready(make(dtype=torch.float32))
        inputs = ready((qkv.to(dtype), padding, bias))
        torch.library.opcheck(operators.window_attention.default, (*inputs, *numbers))
        result, normalizer = (v.detach() for v in operators.window_attention(*inputs, *numbers))
        plain = tuple(v.detach() for v in inputs)
        torch.library.opcheck(
            operators.window_attention_backward.default, (result, normalizer, *plain, *numbers)
        )
    compiled = torch.compile(partial(ours), fullgraph=True, backend="aot_eager")
    inputs = make(dtype=torch.float32)
    torch.testing.assert_close(compiled(inputs), ours(inputs))


def test_what_no_kernel_serves_is_pytorchs(served_by: str) -> None:
    qkv, padding, bias = make(dtype=torch.float32)
    large = make((3, 3), 1, (33, 2), batch=1, dtype=torch.float32)
    others: dict[str, tuple[Inputs, Pair]] = {
        "12 channels of a head are not a multiple of 16": (
            (qkv[..., :12], padding[..., :12], bias),
            (4, 5),
        ),
        "expected float32, bfloat16 or float64": (
            (qkv.half(), padding.half(), bias.half()),
            (4, 5),
        ),
        r"qkv is empty, \[0, 9, 11, 3, 2, 16\]": ((qkv[:0], padding, bias), (4, 5)),
        r"qkv is empty, \[2, 9, 11, 3, 0, 16\]": (
            (qkv[..., :0, :], padding[:, :0], bias[:0]),
            (4, 5),
        ),
        "windows of 33 x 2 are larger than 32": (large, (33, 2)),
    }
    for reason, (inputs, window) in others.items():
        with use_backend("auto"):
            torch.testing.assert_close(
                ours(inputs, window, (2, 1)), in_pytorch(*inputs, *window, 2, 1)
            )
        if served_by == "native":
            with pytest.raises(BackendError, match=reason):
                ours(inputs, window, (2, 1))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_bfloat16(parameters: torch.dtype, served_by: str) -> None:
    """Beside exact results no further than PyTorch's, gradients in the dtypes of their inputs."""
    qkv, padding, bias = make((14, 21), 3, (7, 7), 32)
    inputs = ready((qkv.bfloat16(), padding.to(parameters), bias.to(parameters)))
    exact_inputs = ready(tuple(v.double() for v in inputs))  # type: ignore[arg-type]
    window, shift = (7, 7), (3, 3)
    found = with_gradients(ours(inputs, window, shift), inputs)
    other = with_gradients(in_pytorch(*inputs, *window, *shift), inputs)
    exact = with_gradients(in_pytorch(*exact_inputs, *window, *shift), exact_inputs)
    for a, b, truth, given_input in zip(found, other, exact, (qkv, *inputs), strict=True):
        assert a.dtype == b.dtype
        assert given_input is qkv or a.dtype == given_input.dtype
        assert (a - truth).norm() <= 1.05 * (b - truth).norm() + 4 * EPS * truth.norm()


@pytest.mark.usefixtures("served_by")
def test_follows_autocast() -> None:
    qkv, padding, bias = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours((qkv, padding, bias))
        wide = ours((qkv.double(), padding.double(), bias.double()))
    assert found.dtype == torch.bfloat16
    assert wide.dtype == torch.float64
    torch.testing.assert_close(found, ours((qkv.bfloat16(), padding, bias)), rtol=0.02, atol=0.02)


def test_where_it_is_faster() -> None:
    x, window = torch.zeros(1), (7, 32)
    with_vectors = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    for maps in (x, x.bfloat16()):
        assert is_faster(maps, 32, window) == with_vectors
    assert not is_faster(x, 24, window)
    assert not is_faster(x, 32, (33, 7))
    for other in (x.double(), x.half(), x.to("meta")):
        assert not is_faster(other, 32, window)


QKV, BIAS = torch.zeros(1, 4, 4, 3, 2, 16), torch.zeros(2, 4, 4)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "qkv must be a torch.Tensor, got list", ([], BIAS, (2, 2))),
        (TypeError, "qkv must have a floating-point dtype", (QKV.long(), BIAS, (2, 2))),
        (ValueError, r"qkv must be \[B, h, w, 3, H, D\], got", (QKV[0], BIAS, (2, 2))),
        (ValueError, r"qkv must be \[B, h, w, 3, H, D\], got", (QKV[:, :, :, :2], BIAS, (2, 2))),
        (ValueError, "qkv must have tokens and channels, got", (QKV[:, :0], BIAS, (2, 2))),
        (ValueError, "qkv must have tokens and channels, got", (QKV[:, :, :0], BIAS, (2, 2))),
        (ValueError, "qkv must have tokens and channels, got", (QKV[..., :0], BIAS, (2, 2))),
        (ValueError, "window_size must be two positive integers, got 2", (QKV, BIAS, 2)),
        (ValueError, r"window_size must be .* got \(0, 2\)", (QKV, BIAS, (0, 2))),
        (ValueError, r"shift_size must be .*\(2, 2\), got \(0, 2\)", (QKV, BIAS, (2, 2), (0, 2))),
        (ValueError, r"shift_size must be .* got \(-1, 0\)", (QKV, BIAS, (2, 2), (-1, 0))),
        (ValueError, r"shift_size must be .* got 1", (QKV, BIAS, (2, 2), 1)),
        (
            ValueError,
            r"relative_position_bias must be \[2, 9, 9\], got \[2, 4, 4\]",
            (QKV, BIAS, (3, 3)),
        ),
        (
            ValueError,
            r"padding must be \[3, 2, 16\], got \[2, 16\]",
            (QKV, BIAS, (2, 2), (0, 0), QKV[0, 0, 0, 0]),
        ),
        (ValueError, "relative_position_bias must be on cpu", (QKV, BIAS.to("meta"), (2, 2))),
        (
            TypeError,
            "relative_position_bias must be torch.float32 to match qkv",
            (QKV, BIAS.double(), (2, 2)),
        ),
        (TypeError, "padding must be a torch.Tensor", (QKV, BIAS, (2, 2), (0, 0), 0)),
    ],
)
def test_errors(error: type[Exception], match: str, arguments: tuple[Tensor, Tensor, Pair]) -> None:
    with pytest.raises(error, match=match):
        window_attention(*arguments)


def test_of_timm() -> None:
    """The module of timm with a map whose sides are whole windows, where both pad nothing."""
    from timm.models.swin_transformer import SwinTransformerBlock

    torch.manual_seed(0)
    block = SwinTransformerBlock(32, (12, 18), 2, window_size=6, shift_size=3).double()
    x = torch.randn(2, 12, 18, 32, dtype=torch.float64)
    qkv = block.attn.qkv(x).unflatten(-1, (3, 2, 16))
    y = window_attention(qkv, block.attn._get_rel_pos_bias()[0], (6, 6), (3, 3))
    torch.testing.assert_close(
        F.linear(y.flatten(-2), *block.attn.proj.parameters()), block._attn(x)
    )
