"""The schema of recipes, and functions that find, merge, validate and write them."""

from typing import TYPE_CHECKING

from maskformer.lazy import imported_on_use

if TYPE_CHECKING:
    from maskformer.config.load import load_config, parse_config, to_yaml
    from maskformer.config.schema import Config, ModelConfig
    from maskformer.errors import ConfigError

__all__ = ["Config", "ConfigError", "ModelConfig", "load_config", "parse_config", "to_yaml"]

if not TYPE_CHECKING:
    # Completing names of recipes on the command line does not need the schema.
    __getattr__ = imported_on_use(
        __name__,
        {
            "config.load": ("load_config", "parse_config", "to_yaml"),
            "config.schema": ("Config", "ModelConfig"),
            "errors": ("ConfigError",),
        },
    )
