"""The example runs, on pictures that it draws itself."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.repository import ROOT

pytest.importorskip("transformers")


@pytest.fixture
def example() -> Any:
    file = ROOT / "examples" / "finetune_hf_maskformer.py"
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_few_steps(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = example.main(["--steps", "3", "--batch", "2", "--size", "64"])
    assert math.isfinite(result["loss"])
    assert 0 <= result["miou_before"] <= 100
    assert 0 <= result["miou_after"] <= 100
    said = capsys.readouterr()
    assert "ms patched" in said.out
    assert "mIoU after 3 steps" in said.out
    assert "3/3" in said.err


def test_a_folder(example: Any, tmp_path: Path) -> None:
    example.draw_folder(tmp_path, 64, train=3, val=2)
    assert (tmp_path / "classes.txt").read_text().split()[0] == "disc"
    result = example.main(["--data", str(tmp_path), "--steps", "2", "--batch", "2"])
    assert math.isfinite(result["loss"])
    with pytest.raises(ValueError, match="less than a batch of 4"):
        example.main(["--data", str(tmp_path), "--batch", "4"])
