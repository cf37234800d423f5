"""What `benchmarks/gpu/compilation.py` found for all GPUs, and a small part of it done again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.repository import ROOT

pytest.importorskip("triton")
from helpers.gpu.compiler import compile_launch, is_pinned, made_for
from helpers.gpu.launches import of_class_loss, of_everything, of_panoptic, of_semantic

from mfkernels.triton.devices import KNOWN

sys.path.append(str(ROOT / "benchmarks" / "gpu"))
import compilation

REPORT = ROOT / "benchmarks" / "results" / "compilation.json"
PAGE = ROOT / "docs" / "gpus.md"
AMD = """
import torch
torch.version.hip, torch.version.cuda = "7.0", None
from helpers.gpu.compiler import compile_launch, made_for
from helpers.gpu.launches import of_panoptic
with made_for("gfx942") as gpu:
    for launch in of_panoptic(torch.float16):
        found = compile_launch(launch, gpu.name)
        assert found.spilled == 0 and found.shared <= gpu.shared_memory, (launch.name, found)
        print(launch.name, found.tensor_cores)
"""


is_there = pytest.mark.skipif(not REPORT.exists(), reason="the table was not made yet")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(REPORT.read_text())
    return found


@is_there
def test_the_table_is_of_all_gpus_and_kernels(report: dict[str, Any]) -> None:
    kernels = {launch.name for _, launch in of_everything(torch.float32)}
    for name, gpu in KNOWN.items():
        for dtype in ("float32", "float16", "bfloat16"):
            if dtype == "bfloat16" and not gpu.generation.bfloat16:
                continue
            of_both = (row for row in report["rows"] if row["architecture"] == name)
            found = {row["kernel"] for row in of_both if row["dtype"] == dtype}
            assert found >= kernels - {"parts_kernel"}, (name, dtype)


def test_every_kernel_is_among_those_that_are_compiled() -> None:
    """A program of the package that no test calls, or two of one name, would pass unseen."""
    pattern = re.compile(r"^@triton\.jit.*\ndef (\w+_kernel)\(", re.MULTILINE)
    files = (ROOT / "mfkernels" / "ops").glob("*/triton_*.py")
    written = sorted(name for file in files for name in pattern.findall(file.read_text()))
    launched = {launch.name for _, launch in of_everything(torch.float32)}
    assert written == sorted(launched)


@is_there
def test_no_kernel_is_beyond_a_limit(report: dict[str, Any]) -> None:
    assert list(compilation.problems(report["rows"])) == []
    worse = [dict(row, spilled=row["spilled"] + 72) for row in report["rows"][:1]]
    assert len(list(compilation.problems(worse))) == 1


@is_there
def test_the_page_shows_it(report: dict[str, Any]) -> None:
    assert compilation.page(report) in PAGE.read_text()


@pytest.mark.skipif(not is_pinned(), reason="the table is of the pinned Triton")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_103", "sm_120"])
def test_a_part_of_it(architecture: str) -> None:
    with made_for(architecture) as gpu:
        launches = [*of_class_loss(torch.float16, 847, 100), *of_panoptic(torch.float32)]
        if architecture == "sm_75":  # which takes other pieces than all others
            launches += of_semantic(torch.float16, 847, resized=True)
        for launch in launches:
            found = compile_launch(launch, architecture)
            assert found.shared <= gpu.shared_memory, launch.name
            allowed = compilation.SPILLED_ON_TURING if architecture == "sm_75" else 0
            assert found.spilled <= allowed, launch.name


def test_a_part_of_it_on_amd() -> None:
    """In the form that a ROCm build of PyTorch takes, without instructions of NVIDIA's."""
    result = subprocess.run(
        [sys.executable, "-c", AMD],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "by_pixel_kernel True" in result.stdout, "no matrix units"
