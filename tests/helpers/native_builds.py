"""Builds of the native code that tests make for themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.repository import ROOT

from mfkernels import backend

TOOLS = os.environ["PATH"] + os.pathsep + str(Path(sys.executable).parent)
CMAKE, NINJA, NVCC = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja", "nvcc"))

needs_build = pytest.mark.skipif(
    not backend.part("cpu").usable or CMAKE is None or NINJA is None,
    reason="needs CMake, Ninja and a C++ compiler",
)


def native_build(folder: Path, targets: Sequence[str], *options: str) -> None:
    """Build targets of CMakeLists.txt into a folder, with options of CMake."""
    configure = [
        *(str(CMAKE), "-S", str(ROOT), "-B", str(folder), "-GNinja", "-DMFK_CUDA=OFF"),
        *(f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}", *options),
    ]
    for command in (configure, [str(CMAKE), "--build", str(folder), "--target", *targets]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
