"""The recipes that come with the package: their names and files."""

from __future__ import annotations

from pathlib import Path

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"


def config_names() -> list[str]:
    """Return the names of the recipes that come with the package, such as `ade20k/r50`."""
    return [name for name in base_names() if not name.rpartition("/")[2].startswith("_")]


def base_names() -> list[str]:
    """Return these names and those that only serve as the `base` of others, such as `_small`."""
    files = CONFIG_FOLDER.rglob("*.yaml")
    return sorted(file.relative_to(CONFIG_FOLDER).with_suffix("").as_posix() for file in files)
