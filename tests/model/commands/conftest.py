"""The command line in this process, and a run that it trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import Run
from helpers.recipes import TINY, write_recipe

from maskformer.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line; gives back the exit code and what was printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_recipe(folder, {**TINY, "train": {**TINY["train"], "steps": 2}})
    arguments = ["train", "--cpu", "--config", recipe, "--output", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder / "run"
