"""What every format is read into."""

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
        origin: its weight file, for messages.
        config: the model it holds, without weights.
        weights: its entries, under its own names.
        names: how they translate.
        classes: names of the classes, where it has them.
        settings: what its `config.json` says besides, such as the weights of the losses.
    """

    origin: Path
    config: ModelConfig
    weights: dict[str, Tensor]
    names: Names
    classes: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def match(self, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
        """The entries of a model, as far as they fit, and what does not."""
        return self.names.to_ours(self.weights, wanted, str(self.origin))
