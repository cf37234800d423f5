"""Mask logits, and the checks that every mask operation shares."""

from __future__ import annotations

import pytest
import torch
from helpers.backends import each_backend, native_only
from helpers.strategies import Case, cases
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from mfkernels import mask_logits, matching_cost, use_backend
from mfkernels.ops.common.logits import logits_of_image

served_by = each_backend("mask_logits")


def test_is_the_sum_over_channels() -> None:
    _, embed, features = Case().predictions(torch.float64)
    logits = mask_logits(embed, features)
    expected = (embed[..., None, None] * features[:, None]).sum(3)
    torch.testing.assert_close(logits, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mask_logits(embed[1], features), logits[1])
    assert mask_logits(logits, None) is logits
    torch.testing.assert_close(logits_of_image(embed[0, 1], features[1]), logits[0, 1])


def test_gradients() -> None:
    _, embed, features = Case(low=(2, 3)).predictions(torch.float64, grad=True)
    assert torch.autograd.gradcheck(mask_logits, (embed, features))


def test_shapes_alone() -> None:
    """On the meta device, which has no autocast that could be asked for."""
    embed, features = torch.empty(2, 5, 8, device="meta"), torch.empty(2, 8, 3, 4, device="meta")
    with use_backend("auto"):
        assert mask_logits(embed, features).shape == (2, 5, 3, 4)


def test_dtypes() -> None:
    _, embed, features = Case().predictions()
    assert mask_logits(embed.half(), features.half()).dtype == torch.float16
    assert mask_logits(embed, features.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_logits(embed, features).dtype == torch.bfloat16
    # What the losses see is float32 whatever comes.
    assert logits_of_image(embed[0, 0].half(), features[0].half()).dtype == torch.float32
    assert logits_of_image(embed[0, 0].half(), None).dtype == torch.float32


@given(cases)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@native_only
def test_native_is_as_exact_as_plain_pytorch(case: Case) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, embed, features = case.predictions(dtype)
        exact = torch.einsum("lbqc,bchw->lbqhw", embed.double(), features.double())
        error, plain = (
            (logits.double() - exact).norm()
            for logits in (
                mask_logits(embed, features),
                torch.einsum("lbqc,bchw->lbqhw", embed, features),
            )
        )
        assert error <= 2 * plain + torch.finfo(dtype).eps * exact.norm()


def test_any_strides_and_more_pixels_than_a_task_holds() -> None:
    case = Case(layers=3, counts=(1, 1), queries=17, channels=300, low=(31, 45))
    _, embed, features = case.predictions(torch.float64)
    logits = mask_logits(embed, features)
    torch.testing.assert_close(logits, torch.einsum("lbqc,bchw->lbqhw", embed, features))
    odd = embed.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        other = features.contiguous(memory_format=memory_format)
        torch.testing.assert_close(mask_logits(odd, other), logits)
    padded = torch.nn.functional.pad(features, (1, 3, 2, 1))[:, :, 2:-1, 1:-3]
    turned = features.mT.contiguous().mT
    rows_of_channels = features.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    for other in (padded, turned, rows_of_channels):
        torch.testing.assert_close(mask_logits(odd, other), logits)
        for dtype in (torch.float16, torch.bfloat16):
            half = mask_logits(odd.to(dtype), other.to(dtype))
            torch.testing.assert_close(half, mask_logits(odd.to(dtype), features.to(dtype)))


@native_only
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_pytorch_multiplies_bfloat16_where_there_are_matrix_units(
    images: int, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfkernels.ops.mask_logits._FASTER_IN_PYTORCH", torch.bfloat16)
    case = Case(layers=3, counts=(1,) * images, channels=40, low=(9, 7))
    _, embed, features = case.predictions(torch.bfloat16)
    features = features.contiguous(memory_format=memory_format)
    with torch.profiler.profile() as profile:
        logits = mask_logits(embed, features)
    called = {event.name for event in profile.events()}
    assert "aten::bmm" in called
    assert "mfkernels::mask_logits" not in called
    exact = torch.einsum("lbqc,bchw->lbqhw", embed.double(), features.double())
    torch.testing.assert_close(logits.double(), exact, rtol=2**-8, atol=1e-3)


@native_only
def test_operator_is_well_made_and_compiles() -> None:
    _, embed, features = Case().predictions(grad=True)
    torch.library.opcheck(torch.ops.mfkernels.mask_logits.default, (embed, features))
    compiled = torch.compile(mask_logits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(embed, features), mask_logits(embed, features))


@native_only
def test_no_image_no_layer_no_channel() -> None:
    assert mask_logits(torch.zeros(2, 0, 3, 4), torch.zeros(0, 4, 5, 6)).shape == (2, 0, 3, 5, 6)
    assert mask_logits(torch.zeros(0, 1, 3, 4), torch.zeros(1, 4, 5, 6)).shape == (0, 1, 3, 5, 6)
    assert not mask_logits(torch.ones(1, 1, 3, 0), torch.ones(1, 0, 5, 6)).any()


E = torch.zeros(1, 2, 3, 4)
F = torch.zeros(2, 4, 5, 6)


@pytest.mark.parametrize(
    ("error", "match", "embed", "features"),
    [
        (TypeError, "mask_embed must have a floating-point dtype, got torch.int64", E.long(), F),
        (TypeError, "pixel_features must have a floating-point dtype", E, F.bool()),
        (ValueError, r"mask_embed must be \[L, B, Q, C\] or \[B, Q, C\]", E[0, 0], F),
        (ValueError, r"pixel_features must be \[B, C, h, w\], got \[4, 5, 6\]", E, F[0]),
        (ValueError, r"agree in B and C: got mask_embed \[1, 2, 3, 4\]", E, F[:1]),
        (ValueError, "agree in B and C", E[..., :3], F),
        (ValueError, "pixel_features must be on cpu .* but is on meta", E, F.to("meta")),
        (ValueError, "at least one query", E[:, :, :0], F),
        (ValueError, "at least one query and one pixel", E, F[..., :0]),
        (ValueError, r"without pixel_features, mask logits \[L, B, Q, h, w\]", E[0], None),
        (ValueError, "at least one query and one pixel", E[..., :0], None),
    ],
)
def test_errors(error: type[Exception], match: str, embed: Tensor, features: Tensor | None) -> None:
    with pytest.raises(error, match=match):
        mask_logits(embed, features)
    with use_backend("auto"), pytest.raises(error, match=match):
        matching_cost(torch.zeros(1, 2, 3, 5), embed, features, Case().targets())
