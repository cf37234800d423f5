"""Runs each `test_*_triton.py` in a process of its own, in which Triton interprets its kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.repository import ROOT, TESTS

pytest.importorskip("triton")


@pytest.mark.long
@pytest.mark.parametrize(
    "file", [str(file.relative_to(ROOT)) for file in sorted(TESTS.rglob("test_*_triton.py"))]
)
def test_in_the_interpreter(file: str) -> None:
    plugins = ["-p", "helpers.gpu.interpreter", "-p", "no:cacheprovider"]
    # An empty entry would be this folder, and its package the one that is tested.
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, file],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
