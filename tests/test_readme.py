from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from helpers.repository import ROOT


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
