from __future__ import annotations

import importlib.util

from helpers.repository import ROOT


def test_the_figures_in_the_readme_are_the_measured_ones() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.update(text) == text, "run benchmarks/readme.py"
