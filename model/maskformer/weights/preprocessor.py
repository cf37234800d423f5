"""`preprocessor_config.json`, in which folders of models say what images they expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskformer.system.documents import check, read_mapping
from maskformer.weights.schemas import PreprocessorPart

PREPROCESSOR_FILE = "preprocessor_config.json"


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
    for name, given in (("pixel_mean", part.image_mean), ("pixel_std", part.image_std)):
        if given:
            values[name] = tuple(round(value / part.rescale_factor, 6) for value in given)
    if part.size_divisor is not None:
        values["size_divisibility"] = part.size_divisor
    return values
