"""The C++ kernels under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.native_builds import ROOT, native_build, needs_build

OPERATIONS = (
    "conv3x3",
    "focal_dice",
    "group_norm",
    "mask_logits",
    "matching_cost",
    "mask_loss",
    "sample_points",
    "segmentation/test_segmentation_native.py",
    "window_attention",
)

pytestmark = [
    needs_build,
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="needs libasan and libubsan of Linux"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, its native code instrumented, and its tests."""
    folder = tmp_path_factory.mktemp("sanitized")
    built = native_build(
        "sanitized",
        ["mfk_torch_cpu", "mfk_numpy"],
        "-DMFK_SANITIZE=address,undefined",
        "-DMFK_ISAS=avx512",  # AVX2 runs the same source with half the lanes
        "-DCMAKE_BUILD_TYPE=Sanitize",
        "-DCMAKE_CXX_FLAGS_SANITIZE=-Og",
    )
    ignore = shutil.ignore_patterns("*.so", "native_build.json", "__pycache__")
    for name in ("mfkernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for library in built.glob("*.so"):
        shutil.copy(library, folder / "mfkernels")
    return folder


@pytest.fixture(scope="module")
def libraries() -> str:
    """What must be loaded before anything else."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or "c++"
    paths = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(path).is_absolute() for path in paths):
        pytest.skip("needs the sanitizer libraries of the compiler")
    return ":".join(paths)


def run(package: Path, libraries: str, isa: str, *command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=package,
        env={
            **os.environ,
            "LD_PRELOAD": libraries,
            # Too much memory is an error as usual, of 4 GiB or more.
            "ASAN_OPTIONS": (
                "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096"
            ),
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONPATH": str(package),
            "MFKERNELS_ISA": isa,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "runtime error" not in result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("isa", "problems", "largest"),
    [("baseline", 3000, 40), ("avx512", 5000, 40), ("avx512", 20, 280)],
)
def test_assignment(package: Path, libraries: str, isa: str, problems: int, largest: int) -> None:
    (module,) = (package / "mfkernels").glob("_numpy.*.so")
    sizes = ["--problems", str(problems), "--largest", str(largest)]
    shown = run(package, libraries, isa, "tests/helpers/assignment_driver.py", str(module), *sizes)
    assert "equal to SciPy" in shown


@pytest.mark.parametrize(
    ("isa", "names"),
    [
        ("baseline", "restatement or definition or strides or sampled or well_made"),
        ("avx512", "strides and (mask_logits or matching_cost)"),
        ("avx512_bf16", "not instruction and not compile and not graph"),
    ],
)
def test_operators_on_masks(package: Path, libraries: str, isa: str, names: str) -> None:
    code = "import mfkernels.backend as b; print(b.part('cpu').path, b.part('cpu').problem)"
    assert f"{package}/mfkernels/_torch_cpu.so None" in run(package, libraries, isa, "-c", code)
    tests = [f"tests/ops/{operation}" for operation in OPERATIONS]
    chosen = f"native and ({names})"
    shown = run(package, libraries, isa, "-m", "pytest", "-q", *tests, "-k", chosen)
    assert " passed" in shown


@pytest.mark.parametrize("isa", ["baseline", "avx512_bf16"])
def test_operators_on_any_arguments(package: Path, libraries: str, isa: str) -> None:
    shown = run(
        package, libraries, isa, "tests/helpers/hostile/operators.py", "320", "1", "--no-limit"
    )
    assert "'results'" in shown
