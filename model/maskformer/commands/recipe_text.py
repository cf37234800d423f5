"""`maskformer info RECIPE --keys` and `--yaml`: a recipe as text. Nothing here imports PyTorch."""

from __future__ import annotations

from maskformer.config.keys import recipe_keys
from maskformer.config.load import to_yaml
from maskformer.config.schema import Config
from maskformer.system.text import escape


def keys_text(recipe: Config) -> str:
    """Return each key with its value in the form of an override, its type and its meaning."""
    return "".join(
        f"{key.name}={escape(key.value)}\n    {key.type}. {key.meaning}\n"
        for key in recipe_keys(recipe)
    )


def yaml_text(recipe: Config) -> str:
    """Return a recipe that `--config` can read, with all values of its bases and all defaults."""
    return escape(to_yaml(recipe), newlines=True)
