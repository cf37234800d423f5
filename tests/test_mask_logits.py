"""Mask logits, and the checks that every mask operation shares."""

from __future__ import annotations

import pytest
import torch
from strategies import Case
from torch import Tensor

from mfkernels import mask_logits, matching_cost
from mfkernels.reference.mask_logits import logits_of_image


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


def test_dtypes() -> None:
    _, embed, features = Case().predictions()
    assert mask_logits(embed.half(), features.half()).dtype == torch.float16
    assert mask_logits(embed, features.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_logits(embed, features).dtype == torch.bfloat16
    # What the losses see is float32 whatever comes.
    assert logits_of_image(embed[0, 0].half(), features[0].half()).dtype == torch.float32
    assert logits_of_image(embed[0, 0].half(), None).dtype == torch.float32


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
    with pytest.raises(error, match=match):
        matching_cost(torch.zeros(1, 2, 3, 5), embed, features, Case().targets())
