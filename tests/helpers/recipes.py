"""A recipe small enough for tests: it trains for a few seconds on generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from maskformer.config.load import parse_config
from maskformer.config.schema import Config

TINY: dict[str, Any] = {
    "model": {
        "backbone": {"name": "lcnet_050", "pretrained": False, "frozen_norm": False},
        "pixel_decoder": {"channels": 16, "mask_channels": 16, "groups": 4},
        "decoder": {
            "queries": 8,
            "channels": 16,
            "heads": 2,
            "feedforward": 32,
            "layers": 2,
            "dropout": 0.1,
        },
    },
    "data": {
        "format": "shapes",
        "image_size": [64, 64],
        "train_images": 12,
        "val_images": 4,
        "augmentation": {"kind": "semantic", "short_sides": [64, 72], "crop": [64, 64]},
        "test_short_side": None,
    },
    "train": {
        "steps": 6,
        "batch_size": 2,
        "lr": 0.001,
        "clip_norm": 1.0,
        "workers": 0,
        "log_every": 1,
        "evaluate_every": 100,
        "checkpoint_every": 100,
    },
    "eval": {"panoptic": True, "batch_size": 2, "pictures": 0},
}


def tiny_recipe(**train: Any) -> Config:
    return parse_config({**TINY, "train": {**TINY["train"], **train}})


def write_recipe(folder: Path, values: dict[str, Any] | None = None) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values or TINY))
    return file
