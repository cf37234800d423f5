"""The command line in this process: what the `run` fixture is, and a run that it trains."""

from __future__ import annotations

import os
import subprocess
import sys
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


def without_reader(*arguments: str) -> str:
    """What a Python program says on standard error whose standard output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, *arguments]
    result = subprocess.run(
        program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writing)
    return result.stderr.strip()
