"""Text that came with data, on terminals of any kind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskformer.data import DatasetInfo
from maskformer.inference.segmentation import Segmentation
from maskformer.output.console import Progress, class_table, metrics_table
from maskformer.output.pictures import overlay_with_legend
from maskformer.system.text import counted, encodable, escape

HOSTILE = "\x1b]0;title\x07\x1b[2J \udcb3\udcb5 \ud800 \u202egnp 猫\r\n"


def test_counts() -> None:
    found = [counted(number, "image") for number in (0, 0.5, 1, 1.0, 2, 12_345_678)]
    assert found == ["0 images", "0.5 images", "1 image", "1 image", "2 images", "12345678 images"]


def test_escapes() -> None:
    assert escape("plain 猫 é 😀") == "plain 猫 é 😀"
    assert escape("\x1b[31m\x07\n") == "\\x1b[31m\\x07\\x0a"
    assert escape("a\nb\x9b", newlines=True) == "a\nb\\x9b"
    assert escape("\udcb3\udcff\ud800") == "\\xb3\\xff\\ud800"
    assert escape("\u202egnp\u2028") == "\\u202egnp\\u2028"
    assert encodable("\udcb3\x1b") == "\\xb3\x1b"


@given(st.text(st.characters()))
def test_what_is_escaped_can_be_shown(text: str) -> None:
    shown = escape(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("terminal", [True, False])
def test_reports_fit_every_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool
) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    progress = Progress()
    with progress.training(0, 3), progress.counting(HOSTILE, 2) as counter:
        progress.warn(HOSTILE)
        progress.print(HOSTILE)
        progress.print(class_table([HOSTILE], {"iou": [0.5]}, HOSTILE))
        progress.print(metrics_table({"miou": 0.5}, HOSTILE))
        counter.advance(2)
    text = raw.getvalue().decode(encoding)
    assert "\\x1b]0;title\\x07" in text
    assert "\x1b]0;" not in text
    assert "猫" in text or "\\u732b" in text


def test_reports_outlive_their_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    progress = Progress()
    for _ in range(3):
        progress.print("x" * 100_000)
    stream.close()
    progress.warn("closed")
    monkeypatch.undo()


def test_legends_take_every_name() -> None:
    names = (HOSTILE, "a\nb", "x" * 100_000)
    info = DatasetInfo(names, frozenset(), ((1, 2, 3),) * 3, (0, 1, 2))
    segments = torch.arange(3).repeat(4, 1)
    picture = overlay_with_legend(
        torch.zeros(3, 4, 3, dtype=torch.uint8), Segmentation(segments, torch.arange(3)), info
    )
    assert picture.shape[0] == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_command_line_on_poor_terminals(tmp_path: Path, encoding: str) -> None:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "猫.png")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "COLUMNS": "300"}
    command = [sys.executable, "-m", "maskformer", "predict", str(tmp_path), "--out", "x"]
    done = subprocess.run(
        [*command, "--checkpoint", "猫\x1b"], env=environment, capture_output=True, check=False
    )
    assert b"no checkpoint at \\u732b\\x1b" in done.stderr
    assert b"Traceback" not in done.stderr
