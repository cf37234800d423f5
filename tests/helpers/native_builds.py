"""Builds of the native code for tests that need their own.

They are kept in `build/tests` (`make clean` removes them), so later runs rebuild only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers.repository import ROOT

from mfkernels import backend

TOOLS = os.environ["PATH"] + os.pathsep + str(Path(sys.executable).parent)
CMAKE, NINJA, NVCC = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja", "nvcc"))

needs_build = pytest.mark.skipif(
    not backend.part("cpu").usable or CMAKE is None or NINJA is None,
    reason="needs CMake, Ninja and a C++ compiler",
)


def kept_folder(name: str) -> Path:
    """The folder for builds with this version of Python and PyTorch, created if missing."""
    version = f"py{sys.version_info.major}{sys.version_info.minor}-torch{torch.__version__}"
    folder = ROOT / "build" / "tests" / version / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def native_build(name: str, targets: Sequence[str], *options: str) -> Path:
    """Build targets of CMakeLists.txt with these CMake options, and return the build folder."""
    folder = kept_folder(name)
    configure = [
        *(str(CMAKE), "-S", str(ROOT), "-B", str(folder), "-GNinja", "-DMFK_CUDA=OFF"),
        *(f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}", *options),
    ]
    with FileLock(folder.with_suffix(".lock")):
        for command in (configure, [str(CMAKE), "--build", str(folder), "--target", *targets]):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder
