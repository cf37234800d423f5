"""Training runs of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskformer.config.schema import Config
from maskformer.training.build import build_training
from maskformer.training.trainer import Trainer


def build_trainer(config: Config, output: Path, **options: Any) -> Trainer:
    """A trainer of a recipe in a run folder; see `build_training` for the options."""
    return Trainer(build_training(config, output, **options))
