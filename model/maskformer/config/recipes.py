"""The recipes that come with the package: where they are and what they are called."""

from __future__ import annotations

from pathlib import Path

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"


def config_names() -> list[str]:
    """Names that `load_config` takes, such as `ade20k/r50`."""
    return [name for name in base_names() if not name.rpartition("/")[2].startswith("_")]


def base_names() -> list[str]:
    """The same, and those that are only there to be the `base` of others, such as `_small`."""
    files = CONFIG_FOLDER.rglob("*.yaml")
    return sorted(file.relative_to(CONFIG_FOLDER).with_suffix("").as_posix() for file in files)
