"""The values of a recipe as plain types that TensorBoard and trackers accept."""

from __future__ import annotations

from pydantic import BaseModel

from maskformer.config.load import flat_values
from maskformer.system.text import encodable

Plain = bool | int | float | str


def plain_values(config: BaseModel) -> dict[str, Plain]:
    """Return the values by dotted key: numbers unchanged, everything else as text."""
    return {name: _plain(value) for name, value in flat_values(config).items()}


def _plain(value: object) -> Plain:
    return value if isinstance(value, (bool, int, float)) else encodable(str(value))
