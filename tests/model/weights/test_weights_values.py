"""Weights whose values are none (of other kinds than floating point, NaN or infinity), and weights
of a model that computes something else with them.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_cases import tiny_model
from safetensors.torch import save_file

from maskformer import MaskFormer, Predictor
from maskformer.errors import WeightsError


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *(("safetensors", dtype) for dtype in (torch.int32, torch.complex64, torch.bool)),
        *(("pth", dtype) for dtype in (torch.int64, torch.uint8, torch.bool)),
    ],
)
def test_weights_that_are_no_floating_point(suffix: str, dtype: Any, tmp_path: Path) -> None:
    model = tiny_model()
    weights = model.state_dict()
    name = "pixel_decoder.mask_features.weight"
    weights[name] = weights[name].to(dtype)
    save = save_file if suffix == "safetensors" else torch.save
    save(weights, tmp_path / f"x.{suffix}")
    with pytest.raises(WeightsError, match=rf"{name} is {dtype}, expected floating point"):
        model.load_weights(tmp_path / f"x.{suffix}", ignore_mismatched_sizes=True, strict=False)


def test_weights_that_are_not_finite_are_said(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskFormer.from_pretrained(tmp_path)
    with torch.no_grad():
        entry = model.pixel_decoder.mask_features
        entry.weight[0, 0, 0, 0] = math.nan
        entry.bias[0], entry.bias[1] = math.inf, -math.inf
    model.save_pretrained(tmp_path)
    said = (
        r"model\.safetensors holds NaN or infinity in 2 of \d+ entries, so its predictions "
        r"are meaningless: pixel_decoder\.mask_features\.weight, pixel_decoder\.mask_features\.bias"
    )
    with pytest.warns(UserWarning, match=said):
        MaskFormer.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=said):
        Predictor.from_pretrained(tmp_path, device="cpu")
    told: list[str] = []
    model.load_weights(tmp_path, warn=told.append)
    assert len(told) == 1


def test_large_finite_weights_are_weights(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.pixel_decoder.mask_features.weight.fill_(3e38)
    model.save_pretrained(tmp_path)
    told: list[str] = []
    MaskFormer.from_pretrained(tmp_path, warn=told.append)
    assert told == []


def test_weights_that_mean_something_else_here_are_said(tmp_path: Path) -> None:
    """Attention heads and groups of norms have no shape: such weights fit, but were not trained so.
    `maskformer train --weights` prints it.
    """
    tiny_model(pixel_decoder={"channels": 32, "groups": 32}).save_pretrained(tmp_path)
    told: list[str] = []
    same = MaskFormer.from_pretrained(tmp_path)
    same.load_weights(tmp_path, warn=told.append)
    assert told == []
    heads = same.config.decoder.heads
    other = tiny_model(
        pixel_decoder={"channels": 32, "groups": 8},
        decoder={"heads": 2 * heads},
        pixel_mean=[0] * 3,
    )
    other.load_weights(tmp_path, warn=told.append)
    [text] = told
    assert f"model.decoder.heads={heads} (here {2 * heads})" in text
    assert "model.pixel_decoder.groups=32 (here 8)" in text
    assert "model.pixel_mean=[123.675, 116.28, 103.53] (here [0.0, 0.0, 0.0])" in text
