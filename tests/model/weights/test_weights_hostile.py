"""Weight files that mean harm are refused in time, in little memory, and leave no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from helpers.hostile.weights import __file__ as program


def test_hostile_weights(tmp_path: Path) -> None:
    """One process reads them all: a crash, or what one leaves behind, would end it."""
    run = subprocess.run(
        [sys.executable, program, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = json.loads(run.stdout)
    assert [entry for entry in outcomes if entry[1] not in entry[2]] == []
    assert Counter(outcome for _, outcome, _ in outcomes)["refused"] >= 600
