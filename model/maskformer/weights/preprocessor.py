"""`preprocessor_config.json`, in which folders of models say what images they expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskformer.config.schema import ModelConfig
from maskformer.system.documents import check, read_mapping
from maskformer.weights.schemas import PreprocessorPart

PREPROCESSOR_FILE = "preprocessor_config.json"
SECTION = "image_preprocessing"
"""What a `config.json` of `transformers` has it under, if ours wrote it."""


def read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """Its values, None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    file = folder / PREPROCESSOR_FILE
    return read_mapping(file) if file.is_file() else None


def image_values(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Normalisation and padding in a `preprocessor_config.json`, as values of a model section."""
    values: dict[str, Any] = {}
    part = check(PreprocessorPart, preprocessor)
    mean, std = part.image_mean, part.image_std
    if part.do_normalize is False:
        mean, std = (0.0,) * part.reader.num_channels, (1.0,) * part.reader.num_channels
    for name, given in (("pixel_mean", mean), ("pixel_std", std)):
        if given:
            values[name] = tuple(round(value / part.rescale_factor, 6) for value in given)
    if part.size_divisor is not None:
        values["size_divisibility"] = part.size_divisor
    return values


def image_section(config: ModelConfig) -> dict[str, Any] | None:
    """What `image_values` makes a model's normalisation and padding of; None for the defaults.

    It stands in a `config.json` of `transformers`, whose models say nothing of images, for folders
    without a `preprocessor_config.json`.
    """
    default = ModelConfig()
    names = ("pixel_mean", "pixel_std", "size_divisibility")
    if all(getattr(config, name) == getattr(default, name) for name in names):
        return None
    return {
        "image_mean": [round(value / 255, 9) for value in config.pixel_mean],
        "image_std": [round(value / 255, 9) for value in config.pixel_std],
        "size_divisor": config.size_divisibility,
    }


def section_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the section that a `config.json` may have of it."""
    section = config.get(SECTION)
    return image_values(section) if isinstance(section, dict) else {}
