"""The build: what it makes, and what it says and does where something is missing."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.native_builds import CMAKE, kept_folder
from helpers.repository import ROOT
from packaging.version import Version

from mfkernels import backend

PARTS = ("cpu", "cuda", "numpy")
NM = shutil.which("nm")

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="needs the source tree"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the build reads, without anything built."""
    return copy_sources(tmp_path / "sources")


def copy_sources(folder: Path) -> Path:
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


def cpu_library() -> Path:
    path = backend.part("cpu").path
    assert path is not None
    return path


def undefined_symbols(library: Path) -> str:
    command = [str(NM), "-D", "-C", "--undefined-only", str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def newer_than_manylinux_2_28(symbols: str) -> list[str]:
    newest = {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11", "GCC": "7.0.0"}
    return [
        line
        for line in symbols.splitlines()
        for library, version in re.findall(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", line)
        if Version(version) > Version(newest[library])
    ]


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


@pytest.mark.skipif(
    not backend.part("cpu").usable or NM is None, reason="needs a native build and nm"
)
class TestWithCompiler:
    def test_compile_error_names_the_way_around_it(self, sources: Path) -> None:
        # A header that all files include: none of them takes long to fail.
        (sources / "csrc" / "core" / "element.h").write_text("this is not C++")
        result = build(sources, MFKERNELS_BUILD="cpu")
        assert result.returncode != 0
        assert "MFKERNELS_BUILD=none" in result.stderr
        assert "element.h" in result.stdout + result.stderr

    @pytest.mark.parametrize(
        ("environment", "message"),
        [
            ({"MFKERNELS_BUILD": "fast"}, "MFKERNELS_BUILD is 'fast'"),
            ({"MFKERNELS_PYTHONS": "python3 no-such"}, "MFKERNELS_PYTHONS: not found: no-such"),
        ],
    )
    def test_unknown_choice_is_refused(
        self, sources: Path, environment: dict[str, str], message: str
    ) -> None:
        result = build(sources, **environment)
        assert result.returncode != 0
        assert message in result.stderr

    @pytest.mark.long
    def test_wheel_holds_everything_for_every_python_and_old_libraries(self) -> None:
        folder = kept_folder("wheel")
        with FileLock(folder.with_suffix(".lock")):
            # The compiler's results stay, and what was not copied or made now is not in the wheel.
            for path in folder.iterdir():
                if path.name != "objects":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.check_wheel(copy_sources(folder))

    def check_wheel(self, sources: Path) -> None:
        choices = {"MFKERNELS_BUILD": "cpu", "MFKERNELS_PYTHONS": sys.executable}
        command = ("build", "--build-temp", "objects", "bdist_wheel")
        result = build(sources, *command, **choices)
        assert result.returncode == 0, result.stderr
        assert not re.findall(r"\.(?:cpp|h):\d+.*warning:.*", result.stdout + result.stderr)
        (wheel,) = (sources / "dist").glob("*.whl")
        assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            libraries = [
                Path(archive.extract(name, sources)) for name in names if name.endswith(".so")
            ]
            reasons = json.loads(archive.read("mfkernels/native_build.json"))
        assert reasons == {
            "cpu": "",
            "cuda": "switched off when it was built",
            "numpy": "",
            "cuda_architectures": "",
        }
        assert "mfkernels/_torch_cpu.so" in names
        assert [name for name in names if re.match(r"mfkernels/_numpy\..*\.so$", name)]
        assert "mfkernels/py.typed" in names
        assert "mfkernels/ops/assignment/reference.py" in names
        assert "maskformer/config/schema/data.py" in names
        configs = {
            path.name for path in (ROOT / "model" / "maskformer" / "configs").rglob("*.yaml")
        }
        assert configs <= {Path(name).name for name in names}
        assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]
        for library in libraries:
            needed = undefined_symbols(library)
            if platform.machine() == "x86_64":
                assert "GLIBC_" in needed
                assert not newer_than_manylinux_2_28(needed)
            assert ("PyObject_" in needed) == library.name.startswith("_numpy.")

    def test_source_distribution_holds_what_the_build_needs(self, sources: Path) -> None:
        result = build(sources, "sdist", MFKERNELS_BUILD="none")
        assert result.returncode == 0, result.stderr
        (archive_path,) = (sources / "dist").glob("*.tar.gz")
        with tarfile.open(archive_path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
        assert native | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= names
        assert not [name for name in names if name.endswith(".so")]

    def test_tensor_library_uses_the_stable_abi_only(self) -> None:
        listing = undefined_symbols(cpu_library())
        assert "aoti_torch_" in listing
        unstable = [line for line in listing.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
        assert not unstable

    def test_audit_names_symbols_that_the_oldest_torch_lacks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("torch_abi_audit")
        monkeypatch.syspath_prepend(ROOT / "tools")
        make_wheel = importlib.import_module("make_wheel")
        assert make_wheel.problems(cpu_library(), Version("2.11")) == []
        (problem,) = make_wheel.problems(cpu_library(), Version("2.10"))
        assert problem.startswith("needs torch 2.11.0 for ")


def test_algorithms_include_no_torch_header() -> None:
    for path in (ROOT / "csrc" / "core").iterdir():
        assert not re.search(r"#include <(torch|ATen|c10)/", path.read_text()), path.name


@pytest.mark.skipif(CMAKE is None, reason="needs cmake")
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", "75-real;80-real;90"),
        ("8.0;8.6+PTX", "80-real;86"),
        ("7.5 9.0a", "75-real;90a-real"),
        ("Ampere+PTX", "80-real;86"),
        ("8.0 new", "TORCH_CUDA_ARCH_LIST: 'new' is no compute capability"),
    ],
)
def test_architectures_are_those_that_builds_of_extensions_name(
    asked: str, found: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.cmake"
    script.write_text(
        f"include({ROOT}/csrc/cuda/architectures.cmake)\n"
        'cuda_architectures_of_torch(found "7.5 8.0 9.0+PTX")\nmessage("${found}")\n'
    )
    result = subprocess.run(
        [str(CMAKE), "-P", str(script)],
        env={**os.environ, "TORCH_CUDA_ARCH_LIST": asked},
        capture_output=True,
        text=True,
    )
    assert found in result.stderr
    assert (result.returncode == 0) == ("TORCH" not in found)
