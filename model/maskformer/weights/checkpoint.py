"""The common form of checkpoints of all formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from maskformer.config.schema import ModelConfig
from maskformer.weights.name_map import Names
from maskformer.weights.report import LoadReport


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        origin: the weight file, for messages.
        config: the configuration of the model.
        weights: the entries under the checkpoint's own names.
        names: the translation of these names to ours.
        classes: the names of the classes, if the checkpoint has them.
        settings: other values of its `config.json`, such as the weights of the losses.
    """

    origin: Path
    config: ModelConfig
    weights: dict[str, Tensor]
    names: Names
    classes: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def match(self, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
        """Return the entries that fit a model, under our names, and a report of the others."""
        return self.names.to_ours(self.weights, wanted, str(self.origin))
