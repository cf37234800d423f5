"""Build the portable wheel in dist/ and audit it: `make wheel`.

Run it with a Python that has the build requirements and the extra `release`. The wheel is built
against that Python's torch. The audit determines the oldest torch that can load it, and fails if
that is newer than the package's minimum version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import torch_abi_audit
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLATFORM = f"manylinux_2_28_{os.uname().machine}"
OF_TORCH = ("libtorch*.so", "libc10*.so", "libcudart.so.*")
"""Libraries that torch contains; the wheel must not contain copies of them."""

HAS_HEADERS = """
import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())
"""


def pythons() -> list[str]:
    """The interpreters to build the NumPy module for: those of supported versions found here."""
    found = []
    for classifier in PROJECT["classifiers"]:
        version = classifier.removeprefix("Programming Language :: Python :: ")
        if "." not in version or version == classifier:
            continue
        running = version == f"{sys.version_info.major}.{sys.version_info.minor}"
        name = sys.executable if running else f"python{version}"
        check = [name, "-c", HAS_HEADERS]
        if shutil.which(name) and not subprocess.run(check, stderr=subprocess.DEVNULL).returncode:
            found.append(name)
        else:
            print(f"no NumPy module for Python {version}: there is no {name} with headers here")
    return found


def make(folder: Path) -> Path:
    """Build and repair the wheel in a folder of its own; return its path."""
    environment = {
        **os.environ,
        "MFKERNELS_PYTHONS": os.environ.get("MFKERNELS_PYTHONS") or " ".join(pythons()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }

    def run(*arguments: str | Path) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)

    build = ("build", "--build-base", folder / "build")
    run("setup.py", "-q", *build, "bdist_wheel", "--dist-dir", folder)
    (built,) = folder.glob("*.whl")
    excluded = [argument for name in OF_TORCH for argument in ("--exclude", name)]
    repair = ("repair", "--plat", PLATFORM, "--only-plat", "--strip", *excluded)
    run("-m", "auditwheel", *repair, "--wheel-dir", folder / "repaired", built)
    (repaired,) = (folder / "repaired").glob("*.whl")
    return repaired


def problems(library: Path, floor: Version) -> list[str]:
    """Why an operator library does not work with every Python and every torch from `floor` on."""
    report = torch_abi_audit.inspect_extension(library)
    if report.error is not None:
        return [report.error]
    found = [f"uses {symbol}" for symbol in report.torch.unstable_symbols]
    found += [f"uses {symbol}, not known" for symbol in report.torch.unknown_shim_symbols]
    needed = report.torch.min_torch_version
    if needed is None:
        found.append("does not use torch's stable ABI")
    elif Version(needed) > floor:
        symbols = ", ".join(report.torch.version_defining_symbols)
        found.append(f"needs torch {needed} for {symbols}")
    if report.cpython.compliant or report.cpython.violations:
        found.append("uses the C API of Python")
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = make(folder)
        with zipfile.ZipFile(wheel) as archive:
            libraries = [file for file in archive.namelist() if file.endswith(".so")]
            paths = [Path(archive.extract(file, folder / "unpacked")) for file in libraries]
        requirements = map(Requirement, PROJECT["dependencies"])
        (torch,) = (requirement for requirement in requirements if requirement.name == "torch")
        (floor,) = (Version(specifier.version) for specifier in torch.specifier)
        faults = [
            f"{path.name}: {problem}"
            for path in paths
            if path.name.startswith("_torch_")
            for problem in problems(path, floor)
        ]
        if faults:
            sys.exit("\n".join(faults))
        (ROOT / "dist").mkdir(exist_ok=True)
        for stale in (ROOT / "dist").glob("*.whl"):
            stale.unlink()
        shutil.copy(wheel, ROOT / "dist")
        print(f"dist/{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
    for file in libraries:
        print(f"  {file}")
    print(f"torch {floor} and newer: yes, by the audit of its stable ABI")


if __name__ == "__main__":
    main()
