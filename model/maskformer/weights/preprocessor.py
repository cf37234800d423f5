"""`preprocessor_config.json`, which describes the image processing that a model expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskformer.config.schema import ModelConfig
from maskformer.system.documents import check, read_mapping
from maskformer.weights.schemas import PreprocessorPart

PREPROCESSOR_FILE = "preprocessor_config.json"
SECTION = "image_preprocessing"
"""The key under which we store image processing in a `config.json` for `transformers`."""


def read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """Read the file in a folder; return None if it does not exist.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / PREPROCESSOR_FILE
    return read_mapping(file) if file.is_file() else None


def image_values(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Convert normalisation and padding from a `preprocessor_config.json` to values of the model
    section of a recipe.
    """
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
    """Convert a model's normalisation and padding to a section that `image_values` reads; None for
    the defaults.

    It is stored in a `config.json` for `transformers`, which has no such settings itself, for
    folders without a `preprocessor_config.json`.
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
    """Return the values of the section that `image_section` makes, if a `config.json` has it."""
    section = config.get(SECTION)
    return image_values(section) if isinstance(section, dict) else {}
