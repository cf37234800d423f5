"""The build: what it makes, and what it says and does where something is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mfkernels import backend

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("cpu", "cuda", "numpy")
CMAKE, NINJA, NM = (
    shutil.which(tool, path=os.environ["PATH"] + os.pathsep + str(Path(sys.executable).parent))
    for tool in ("cmake", "ninja", "nm")
)

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="needs the source tree"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the build reads, without anything built."""
    folder = tmp_path / "sources"
    ignore = shutil.ignore_patterns("*.so", "native_build.json", "__pycache__", "*.egg-info")
    for name in ("csrc", "mfkernels", "model"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("CMakeLists.txt", "MANIFEST.in", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("README.md", "LICENSE"):
        (folder / name).write_text(name)
    return folder


def build(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *(command or ("build_ext", "--inplace"))],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def record(folder: Path) -> dict[str, str]:
    return json.loads((folder / "mfkernels" / "native_build.json").read_text())


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MFKERNELS_BUILD": "none"}, "switched off by MFKERNELS_BUILD=none"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler was found"),
    ],
)
def test_without_native_code_the_build_succeeds_and_says_why(
    sources: Path, environment: dict[str, str], reason: str
) -> None:
    result = build(sources, **environment)
    assert result.returncode == 0, result.stderr
    assert f"installing without native code: {reason}" in result.stderr
    assert all(reason in record(sources)[part] for part in PARTS)
    shown = subprocess.run(
        [sys.executable, "-m", "mfkernels"], cwd=sources, capture_output=True, text=True, check=True
    )
    assert shown.stdout.count(reason) >= len(PARTS)


@pytest.mark.skipif(not backend.part("cpu").usable, reason="no native build here")
class TestWithCompiler:
    def test_compile_error_names_the_way_around_it(self, sources: Path) -> None:
        (sources / "csrc" / "torch_library.cpp").write_text("this is not C++")
        result = build(sources, MFKERNELS_BUILD="cpu")
        assert result.returncode != 0
        assert "MFKERNELS_BUILD=none" in result.stderr
        assert "torch_library.cpp" in result.stdout + result.stderr

    def test_unknown_choice_is_refused(self, sources: Path) -> None:
        result = build(sources, MFKERNELS_BUILD="fast")
        assert result.returncode != 0
        assert "MFKERNELS_BUILD is 'fast'" in result.stderr

    def test_builds_without_warnings_and_records_why_there_is_no_cuda(self, sources: Path) -> None:
        result = build(sources, "bdist_wheel", MFKERNELS_BUILD="cpu")
        assert result.returncode == 0, result.stderr
        assert not re.findall(r"\.(?:cpp|h):\d+.*warning:.*", result.stdout + result.stderr)
        (wheel,) = (sources / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            reasons = json.loads(archive.read("mfkernels/native_build.json"))
        assert reasons == {"cpu": "", "cuda": "switched off when it was built", "numpy": ""}
        assert "mfkernels/_torch_cpu.so" in names
        assert [name for name in names if re.match(r"mfkernels/_numpy\..*\.so$", name)]
        assert "mfkernels/py.typed" in names
        assert "mfkernels/reference/assignment.py" in names
        assert "maskformer/config.py" in names
        configs = {
            path.name for path in (ROOT / "model" / "maskformer" / "configs").rglob("*.yaml")
        }
        assert configs <= {Path(name).name for name in names}
        assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]

    def test_source_distribution_holds_what_the_build_needs(self, sources: Path) -> None:
        result = build(sources, "sdist", MFKERNELS_BUILD="none")
        assert result.returncode == 0, result.stderr
        (archive_path,) = (sources / "dist").glob("*.tar.gz")
        with tarfile.open(archive_path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
        assert native | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= names
        assert not [name for name in names if name.endswith(".so")]

    @pytest.mark.skipif(NM is None, reason="needs nm")
    def test_tensor_library_uses_the_stable_abi_only(self) -> None:
        path = backend.part("cpu").path
        listing = subprocess.run(
            [NM, "-D", "-C", "--undefined-only", path], capture_output=True, text=True, check=True
        ).stdout
        assert "aoti_torch_" in listing
        unstable = [line for line in listing.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
        assert not unstable


def test_algorithms_include_no_torch_header() -> None:
    for path in (ROOT / "csrc" / "core").iterdir():
        assert not re.search(r"#include <(torch|ATen|c10)/", path.read_text()), path.name
