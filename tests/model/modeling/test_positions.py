from __future__ import annotations

import pytest
import torch

from maskformer.modeling.transformer import sine_position_encoding


def test_golden_values() -> None:
    """Figures computed with the official code for H=3, W=5."""
    encoding = sine_position_encoding(3, 5, 256)
    row = encoding[:, 1]
    tolerance = {"rtol": 0, "atol": 2e-6}
    for channel, value in {
        0: -0.866025,
        1: -0.500001,
        2: -0.466871,
        3: -0.884325,
        126: 0.000484,
        127: 1.0,
    }.items():
        torch.testing.assert_close(row[channel], torch.full((5,), value), **tolerance)
    columns = {
        128: [0.951056, 0.587786, -0.587785, -0.951057, -0.000001],
        129: [0.309017, -0.809017, -0.809017, 0.309016, 1.0],
        254: [0.000145, 0.00029, 0.000435, 0.00058, 0.000726],
    }
    for channel, values in columns.items():
        torch.testing.assert_close(row[channel], torch.tensor(values), **tolerance)
    assert encoding.double().sum().item() == pytest.approx(1864.77696, abs=2e-4)
    assert encoding.double().abs().sum().item() == pytest.approx(2137.04551, abs=2e-4)


def test_rows_and_columns_swap() -> None:
    encoding = sine_position_encoding(4, 7, 16)
    swapped = sine_position_encoding(7, 4, 16)
    assert torch.equal(encoding[:8], swapped[8:].transpose(1, 2))
    assert torch.equal(encoding[8:], swapped[:8].transpose(1, 2))


def test_dtype_is_rounded_at_the_end() -> None:
    exact = sine_position_encoding(5, 3, 8)
    assert torch.equal(sine_position_encoding(5, 3, 8, dtype=torch.bfloat16), exact.bfloat16())


def test_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"channels must be a multiple of 4 .* got 30"):
        sine_position_encoding(2, 2, 30)
