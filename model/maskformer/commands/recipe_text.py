"""`maskformer info RECIPE --keys` and `--yaml`: a recipe as text. Nothing here imports PyTorch."""

from __future__ import annotations

from maskformer.config.keys import recipe_keys
from maskformer.config.load import to_yaml
from maskformer.config.schema import Config
from maskformer.system.text import escape


def keys_text(recipe: Config) -> str:
    """Each key with its value as an override would give it, its type and its meaning."""
    return "".join(
        f"{key.name}={escape(key.value)}\n    {key.type}. {key.meaning}\n"
        for key in recipe_keys(recipe)
    )


def yaml_text(recipe: Config) -> str:
    """What `--config` reads back, with nothing left to a base or a default."""
    return escape(to_yaml(recipe), newlines=True)
