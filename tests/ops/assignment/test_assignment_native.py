"""The C++ and CUDA sources of `assignment`: an emulated warp, what nvcc makes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.assignment_driver import load, run
from helpers.native_builds import NVCC, native_build, needs_build
from helpers.repository import ROOT, TESTS

from mfkernels import backend

DRIVER = TESTS / "helpers" / "assignment_driver.py"


@needs_build
@pytest.mark.long
def test_device_code_on_an_emulated_warp_equals_scipy(tmp_path: Path) -> None:
    """32 and 64 lanes, three orders of lanes between barriers, memory poisoned with NaN."""
    native_build(tmp_path, ["mfk_emulated_warp"], "-DMFK_EMULATION=ON")
    (module,) = tmp_path.glob("_emulated_warp.*.so")
    solver = load(module)
    assert run(solver, 4_000, seed=1) > 20
    # Square and large enough for the reductions of Jonker and Volgenant.
    run(solver, 40, seed=3, largest=130, batch=2)


@needs_build
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_equals_scipy(isa: str) -> None:
    module = backend.part("numpy").path
    result = subprocess.run(
        [sys.executable, str(DRIVER), str(module), "--problems", "10000"],
        env={**os.environ, "MFKERNELS_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.long
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_cuda_kernels_compile_without_warnings_and_do_not_spill(
    record_property: Callable[[str, object], None],
) -> None:
    specification = importlib.util.spec_from_file_location(
        "ptxas", ROOT / "benchmarks/gpu/ptxas.py"
    )
    assert specification is not None
    assert specification.loader is not None
    ptxas = importlib.util.module_from_spec(specification)
    sys.modules["ptxas"] = ptxas
    specification.loader.exec_module(ptxas)
    messages = ptxas.compile_verbosely(ROOT / "csrc" / "cuda" / "assignment.cu")
    assert "warning" not in messages
    kernels = ptxas.parse("assignment.cu", messages)
    # By a warp with costs on chip or off it, or by a block: for fp32 and fp64 costs, any or SciPy's
    # indices on ties, and fp32 also with 2, 4, 10 or 16 columns of a lane in registers (4 or 16).
    assert len(kernels) == (3 * 4 - 2 + 2 * 4 + 2) * len(ptxas.ARCHITECTURES)
    for kernel in kernels:
        record_property(f"{kernel.architecture} {kernel.name}", vars(kernel))
        assert kernel.spill_stores == kernel.spill_loads == kernel.stack == 0, kernel
        assert kernel.registers <= 208, kernel
        assert kernel.shared_memory <= 2048, kernel
