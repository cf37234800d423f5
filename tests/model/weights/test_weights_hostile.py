"""Weight files that mean harm are refused in time, in little memory, and leave no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from helpers.repository import TESTS


def test_hostile_weights(tmp_path: Path) -> None:
    """One process reads them all: a crash, or what one leaves behind, would end it."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, "-m", "helpers.hostile.read_weights", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = json.loads(run.stdout)
    assert [entry for entry in outcomes if entry[1] not in entry[2]] == []
    assert Counter(outcome for _, outcome, _ in outcomes)["refused"] >= 600
