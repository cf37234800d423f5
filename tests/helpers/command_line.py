"""Helpers for the command line: the type of the `run` fixture, a training run, a closed pipe."""

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
"""Runs a command and returns its exit code, standard output and standard error."""


def train_once(folder: Path, values: dict[str, Any]) -> Path:
    """Train a recipe with these values in this process, and return the run's folder."""
    recipe = write_recipe(folder, values)
    arguments = ["train", "--cpu", "--config", recipe, "--output", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder / "run"


def without_reader(*arguments: str) -> str:
    """Standard error of a Python program whose standard output is a pipe closed by its reader."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, *arguments]
    result = subprocess.run(
        program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writing)
    return result.stderr.strip()
