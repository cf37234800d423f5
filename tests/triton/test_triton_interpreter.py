"""Runs all `test_*_triton.py` of a folder in a process in which Triton interprets its kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.repository import ROOT, TESTS

pytest.importorskip("triton")
FILES = sorted(TESTS.rglob("test_*_triton.py"))


@pytest.mark.long
@pytest.mark.parametrize("folder", sorted({file.relative_to(TESTS).parts[0] for file in FILES}))
def test_in_the_interpreter(folder: str) -> None:
    files = [str(file) for file in FILES if file.is_relative_to(TESTS / folder)]
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
        [sys.executable, "-m", "pytest", "-q", *plugins, *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
