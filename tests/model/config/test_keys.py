"""What the command line and docs/recipe.md say about the keys of a recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.repository import ROOT
from typer.testing import CliRunner

from maskformer.cli import app
from maskformer.config import load_config
from maskformer.config.keys import recipe_keys
from maskformer.config.recipes import config_names


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["info", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", config_names())
def test_keys_with_their_values_are_overrides(name: str) -> None:
    recipe = load_config(name)
    keys = recipe_keys(recipe)
    assert load_config(name, [f"{key.name}={key.value}" for key in keys]) == recipe
    for key in keys:
        assert key.meaning.endswith((".", "?", ")")), f"{key.name} has no meaning"
        assert "anything" not in key.type


def test_keys_show_the_values_of_the_recipe() -> None:
    shown = show("camvid", "train.lr=0.5", "--keys")
    assert "train.lr=0.5\n    number > 0. Learning rate" in shown
    assert "model.backbone.name=resnet18\n    text. A timm model" in shown
    assert "over all processes" in shown.partition("train.batch_size=8\n")[2].partition("\n")[0]


def test_yaml_is_the_merged_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(show("ade20k/swin_t", "train.steps=7", "--yaml"))
    assert load_config(file) == load_config("ade20k/swin_t", ["train.steps=7"])


@pytest.mark.parametrize("arguments", [["camvid", "--keys", "--yaml"], ["--keys"], ["--yaml"]])
def test_what_info_cannot_show(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["info", *arguments])
    assert result.exit_code == 2
    assert "choose one" in result.output or "which recipe?" in result.output


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "recipe_page.py")]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert page == (ROOT / "docs" / "recipe.md").read_text(), "docs/recipe.md is old: make docs"
