"""Read and check the arguments of commands."""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maskformer.config.recipes import config_names
from maskformer.errors import UsageError

if TYPE_CHECKING:
    from maskformer.config.schema import Config

NOT_EVALUATED = ("model.", "criterion.", "train.", "predict.", "data.augmentation.")
"""Keys of a recipe without effect on `evaluate`, except for those in `EVALUATED`."""
EVALUATED = ("train.workers", "train.best_metric")
"""Keys of these sections that are used: `train.best_metric` is checked to be measured."""


def read_size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.split("x") if re.fullmatch("[0-9]{2,5}", side)]
    if len(sides) != 2 or text.count("x") != 1 or min(sides) < 32:
        raise typer.BadParameter(
            f"--size must be HEIGHTxWIDTH, such as 512x512, both from 32 to 99999, got '{text}'"
        )
    return sides[0], sides[1]


def config_needed(overrides: list[str] | None) -> typer.BadParameter:
    """Return the error for a missing --config. If a recipe or a folder was given without the
    option, it shows the correct command.
    """
    for text in overrides or []:
        if text in config_names() or Path(text).is_file():
            return typer.BadParameter(f"--config is needed: --config {shlex.quote(text)}")
        if Path(text).is_dir():
            return typer.BadParameter(
                f"--config is needed, and {text} is a folder: maskformer init {shlex.quote(text)} "
                "writes a recipe for it"
            )
    return typer.BadParameter(f"--config is needed; recipes: {', '.join(config_names())}")


def flat_name(config: str) -> str:
    """Convert the value of --config to a folder name, such as `ade20k_r50`."""
    return Path(config).with_suffix("").as_posix().replace("/", "_")


def load_recipe(config: str | None, overrides: list[str] | None) -> Config | None:
    """Load the recipe of --config. This is done before a command is imported, so that errors in it
    are reported at once.
    """
    if config is None:
        return None
    from maskformer.config.load import load_config

    return load_config(config, overrides or [])


def check_model_stays(overrides: list[str]) -> None:
    for override in overrides:
        if override.startswith("model."):
            raise UsageError(
                f"the checkpoint determines the model, so '{override}' cannot be applied; remove it"
            )


def check_evaluated(overrides: list[str]) -> None:
    from maskformer.config.load import override_keys

    unused = [
        key
        for key in override_keys(overrides)
        if f"{key}.".startswith(NOT_EVALUATED) and key not in EVALUATED
    ]
    if unused:
        raise UsageError(
            f"{', '.join(unused[:5])}: no effect on evaluation, which uses only data.* (except "
            f"data.augmentation), eval.* and {', '.join(EVALUATED)}; omit such keys"
        )


def is_override(text: str) -> bool:
    """Whether a text is KEY=VALUE, and not an existing file, or a matching pattern, with `=`."""
    key, equals, _ = text.partition("=")
    is_key = bool(equals) and all(part.isidentifier() for part in key.split("."))
    return is_key and not (Path(text).exists() or glob.glob(text))  # noqa: PTH207
