"""The C++ and CUDA sources of `assignment`: an emulated warp, what nvcc makes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.assignment_driver import Batch, compare, load, run
from helpers.native_builds import NVCC, native_build, needs_build
from helpers.repository import ROOT, TESTS

from mfkernels import backend

DRIVER = TESTS / "helpers" / "assignment_driver.py"


@pytest.fixture(scope="module")
def emulated_warp() -> ModuleType:
    folder = native_build("emulated_warp", ["mfk_emulated_warp"], "-DMFK_EMULATION=ON")
    (module,) = folder.glob("_emulated_warp.*.so")
    return load(module)


@needs_build
@pytest.mark.long
def test_device_code_on_an_emulated_warp_equals_scipy(emulated_warp: ModuleType) -> None:
    """32 and 64 lanes, three orders of lanes between barriers, memory poisoned with NaN."""
    solver = emulated_warp.batch_linear_assignment
    assert run(solver, 4_000, seed=1) > 20
    # Square and large enough for the reductions of Jonker and Volgenant, and more than 128 columns.
    run(solver, 40, seed=3, largest=200, batch=2)


@needs_build
@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "columns", "most"), [(200, 200, 1_000), (80, 200, 400), (100, 100, 1_300)]
)
@pytest.mark.parametrize("values", [1, 10])
@pytest.mark.parametrize("threads", [1, 2])
def test_ties_end_a_search_of_the_device_code(
    emulated_warp: ModuleType, rows: int, columns: int, most: int, values: int, threads: int
) -> None:
    """With columns in memory and in registers: at a free column, not after all assigned ones."""
    cost = np.random.default_rng(0).integers(0, values, (1, rows, columns)).astype(np.float32)
    batch = Batch(cost, np.array([rows]), np.array([columns]), maximize=False)
    emulated_warp.steps()
    compare(emulated_warp.batch_linear_assignment, batch, strict=False, threads=threads)
    assert emulated_warp.steps() <= most


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


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_cuda_kernels_compile_without_warnings(tmp_path: Path) -> None:
    """Unoptimised: the build itself optimises, which takes a minute."""
    command = [
        *(str(NVCC), "-ptx", "-G", str(ROOT / "csrc/cuda/assignment.cu"), "-std=c++17"),
        *("-arch=compute_80", "-o", str(tmp_path / "assignment.ptx"), "-Xcompiler=-Wall,-Wextra"),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-I", str(ROOT / "csrc")),
        *("-isystem", str(Path(torch.__file__).parent / "include")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stdout + result.stderr


@pytest.mark.skipif(not backend.part("cuda").path, reason="needs the CUDA library")
def test_cuda_kernels_do_not_spill(record_property: Callable[[str, object], None]) -> None:
    pytest.importorskip("triton")  # brings cuobjdump
    tool = runpy.run_path(str(ROOT / "benchmarks/gpu/registers.py"))
    kernels = tool["kernels"](backend.part("cuda").path)
    # By a warp with costs on chip or off it, or by a block: for fp32 and fp64 costs, any or SciPy's
    # indices on ties, and fp32 also with 2, 4, 10 or 16 columns of a lane in registers (4 or 16).
    architectures = {kernel.architecture for kernel in kernels}
    assert {"sm_75", "sm_80", "sm_90"} <= architectures
    assert len(kernels) == (3 * 4 - 2 + 2 * 4 + 2) * len(architectures)
    for kernel in kernels:
        record_property(f"{kernel.architecture} {kernel.name}", vars(kernel))
        assert kernel.local_memory == kernel.stack == 0, kernel
        assert kernel.registers <= 208, kernel
        assert kernel.shared_memory <= 3072, kernel  # 1024 of them the system's, on sm_90
