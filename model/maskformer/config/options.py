"""Suggestions for keys of the recipe that are given as options, such as `--lr`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from maskformer.config.schema import Config
from maskformer.config.synonyms import meant_key


def overrides_for(option: str, value: str) -> list[str]:
    """Convert an option that is a key of the recipe to overrides.

    Args:
        option: the option as it was given, such as `--batch-size`.
        value: its value.

    Returns:
        Overrides such as `train.batch_size=8`, one for each section that has the key.
    """
    wanted = option.lstrip("-").replace("-", "_").lower()
    keys = list(dict.fromkeys(_keys(Config)))
    found = [key for key in keys if wanted in (key, key.rpartition(".")[2])]
    if not found and meant_key(wanted.split(".")) in keys:
        found = [str(meant_key(wanted.split(".")))]
    if not found:
        names = [key.rpartition(".")[2] for key in keys]
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.75)
        found = [key for key in keys if key.rpartition(".")[2] in close]
    return [f"{key}={value or '...'}" for key in found]


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = list(_sections(field.annotation))
        if not inner:
            yield prefix + name
        for variant in inner:
            yield from _keys(variant, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections in an annotation, including all sections of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
