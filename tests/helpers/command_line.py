"""The command line in this process: what the `run` fixture is, and a run that it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import write_recipe

from maskformer.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Gives back the exit code and what was printed to standard output and error."""


def train_once(folder: Path, values: dict[str, Any]) -> Path:
    """The run of a recipe with these values."""
    recipe = write_recipe(folder, values)
    arguments = ["train", "--cpu", "--config", recipe, "--output", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder / "run"
