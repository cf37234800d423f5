"""The command line, and a run that it trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import Run, train_once
from helpers.recipes import TINY

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
    return train_once(folder, {**TINY, "train": {**TINY["train"], "steps": 2}})
