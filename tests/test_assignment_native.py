"""The C++ and CUDA sources of `assignment`: sanitizers, an emulated warp, what nvcc makes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from assignment_driver import load, run

from mfkernels import backend

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("assignment_driver.py")
TOOLS = os.environ["PATH"] + os.pathsep + str(Path(sys.executable).parent)
CMAKE, NINJA, NVCC = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja", "nvcc"))

needs_build = pytest.mark.skipif(
    not backend.part("cpu").usable or CMAKE is None or NINJA is None,
    reason="needs CMake, Ninja and a C++ compiler",
)

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Compile one target with options of CMake; the path of the Python module it makes."""

    def compile_module(target: str, name: str, *options: str) -> Path:
        configure = [
            *(str(CMAKE), "-S", str(ROOT), "-B", str(tmp_path), "-GNinja", "-DMFK_CUDA=OFF"),
            *(f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}", *options),
        ]
        for command in (configure, [str(CMAKE), "--build", str(tmp_path), "--target", target]):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
        (path,) = tmp_path.glob(f"{name}.*.so")
        return path

    return compile_module


@needs_build
def test_device_code_on_an_emulated_warp_equals_scipy(build: Build) -> None:
    """32 and 64 lanes, three orders of lanes between barriers, memory poisoned with NaN."""
    solver = load(build("mfk_emulated_warp", "_emulated_warp", "-DMFK_EMULATION=ON"))
    assert run(solver, 4_000, seed=1) > 20
    # Square and large enough for the reductions of Jonker and Volgenant.
    run(solver, 40, seed=3, largest=130, batch=2)


@needs_build
@pytest.mark.skipif(sys.platform != "linux", reason="needs libasan and libubsan of Linux")
def test_address_and_undefined_behaviour_sanitizers_are_silent(build: Build) -> None:
    module = build(
        "mfk_numpy",
        "_numpy",
        "-DMFK_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=Sanitize",
        "-DCMAKE_CXX_FLAGS_SANITIZE=-O1",
    )
    compiler = shutil.which(os.environ.get("CXX", "c++")) or "c++"
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("needs the sanitizer libraries of the compiler")
    for isa, problems, largest in (
        ("baseline", 3000, 40),
        ("avx512", 5000, 40),
        ("avx512", 20, 280),
    ):
        sizes = ["--problems", str(problems), "--largest", str(largest)]
        result = subprocess.run(
            [sys.executable, str(DRIVER), str(module), *sizes],
            env={
                **os.environ,
                "LD_PRELOAD": ":".join(libraries),
                "ASAN_OPTIONS": "detect_leaks=0",
                "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
                "MFKERNELS_ISA": isa,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        assert "equal to SciPy" in result.stdout
        assert "runtime error" not in result.stderr


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
def test_cuda_kernels_compile_without_warnings_and_do_not_spill(
    record_property: Callable[[str, object], None],
) -> None:
    specification = importlib.util.spec_from_file_location("ptxas", ROOT / "benchmarks/ptxas.py")
    assert specification is not None
    assert specification.loader is not None
    ptxas = importlib.util.module_from_spec(specification)
    sys.modules["ptxas"] = ptxas
    specification.loader.exec_module(ptxas)
    messages = ptxas.compile_verbosely(ROOT / "csrc" / "cuda" / "assignment.cu")
    assert "warning" not in messages
    kernels = ptxas.parse("assignment.cu", messages)
    # Three kernels, fp32 and fp64 costs, any or SciPy's indices on ties.
    assert len(kernels) == 12 * len(ptxas.ARCHITECTURES)
    for kernel in kernels:
        record_property(f"{kernel.architecture} {kernel.name}", vars(kernel))
        assert kernel.spill_stores == kernel.spill_loads == kernel.stack == 0, kernel
        assert kernel.registers <= 168, kernel
        assert kernel.shared_memory <= 2048, kernel
