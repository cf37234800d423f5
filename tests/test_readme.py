from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import get_args

import pytest
from helpers.repository import ROOT
from PIL import Image

from maskformer import load_config
from maskformer.data import build_dataset, check_dataset
from maskformer.data.sample import Split


def test_the_figures_in_the_readme_are_the_measured_ones() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.update(text) == text, "run benchmarks/readme.py"


def test_cited_facts_are_there() -> None:
    """Comments cite headings of docs/facts.md, and no document that the repository lacks."""
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "facts.md").read_text(), re.MULTILINE)
    suffixes = (".py", ".h", ".cpp", ".cu")
    for folder in ("mfkernels", "model", "csrc", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix not in suffixes or file == Path(__file__):
                continue
            text = " ".join(file.read_text().replace("#", " ").split())
            assert "facts §" not in text, file
            for cited in re.findall(r"docs/facts\.md, ([\w -]+)", text):
                assert any(cited.startswith(heading) for heading in headings), (file, cited)


def test_the_recipe_for_own_data_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    for split in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("labels", "L")):
            folder = Path("datasets/mine", kind, split)
            folder.mkdir(parents=True)
            for number in range(2):
                suffix = "jpg" if kind == "images" else "png"
                Image.new(mode, (64, 48), number if mode == "L" else "gray").save(
                    folder / f"{number}.{suffix}"
                )
    config = load_config("mine.yaml")
    for split in get_args(Split):
        dataset = build_dataset(config.data, split)
        assert len(dataset) == 2
        assert dataset.info.classes == ("background", "cat", "dog")
        assert check_dataset(dataset) == ["1 of 3 classes never occur: dog"]
