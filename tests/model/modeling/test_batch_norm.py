"""BatchNorm that has one value per channel, or one image, to learn from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.model_cases import tiny_model
from helpers.recipes import TINY
from helpers.training import build_trainer
from torch import nn

from maskformer.config.load import parse_config
from maskformer.config.schema import Config
from maskformer.errors import ConfigError
from maskformer.modeling.batch_norm import explain_single_values, warn_of_single_images


def recipe(frozen: bool, batch_size: int, side: int, accumulate: int = 1) -> Config:
    crop = {"kind": "semantic", "short_sides": [side], "crop": [side, side]}
    return parse_config(
        {
            **TINY,
            "model": {**TINY["model"], "backbone": {
                "name": "lcnet_050", "pretrained": False, "frozen_norm": frozen}},
            "data": {**TINY["data"], "augmentation": crop},
            "train": {**TINY["train"], "steps": 1, "batch_size": batch_size,
                      "accumulate": accumulate},
        }
    )  # fmt: skip


def test_one_value_per_channel(tmp_path: Path) -> None:
    trainer = build_trainer(recipe(frozen=False, batch_size=1, side=32), tmp_path / "a", cpu=True)
    with pytest.raises(
        ConfigError,
        match=r"BatchNorm cannot be trained on 1 image of 32x32 pixels, .*frozen_norm: true .*"
        r"train\.batch_size .*data\.augmentation\.crop",
    ):
        trainer.fit()
    build_trainer(recipe(frozen=True, batch_size=1, side=32), tmp_path / "b", cpu=True).fit()


@pytest.mark.parametrize(
    ("frozen", "batch_size", "accumulate", "warns"),
    [(False, 1, 1, True), (False, 2, 2, True), (False, 2, 1, False), (True, 1, 1, False)],
)
def test_one_image_in_a_pass(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    frozen: bool,
    batch_size: int,
    accumulate: int,
    warns: bool,
) -> None:
    build_trainer(recipe(frozen, batch_size, 64, accumulate), tmp_path / "run", cpu=True)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert ("each forward pass has 1 image, so the BatchNorm" in printed) is warns


def test_other_errors_stay_as_they_are() -> None:
    error = ValueError("something else")
    assert explain_single_values(error, torch.zeros(1, 3, 32, 32)) is error
    assert warn_of_single_images(nn.Sequential(nn.GroupNorm(1, 4)), 1) == ""
    with pytest.raises(ValueError, match=r"must be \[B, 3, H, W\]"):
        tiny_model()(torch.zeros(1, 1, 64, 64))
