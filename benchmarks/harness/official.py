"""The official criterion in plain PyTorch: the tests' oracle, and a baseline for the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from helpers.official.criterion import criterion as official_criterion

__all__ = ["official_criterion"]
