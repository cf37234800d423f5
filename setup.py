"""Run CMake and Ninja for the native code; everything else is in pyproject.toml.

The environment variable MFKERNELS_BUILD chooses what to build: `auto` (the default: everything that
this machine can build), `cpu` (no CUDA) or `none`. Without CMake, Ninja, a C++ compiler, torch or
pybind11, the package is installed without native code, and `python -m mfkernels` says so.

With MFKERNELS_PYTHONS, a list of names or paths of interpreters, the wheel is portable: it uses
only symbols of the C and C++ libraries that manylinux_2_28 has, and supports every Python 3. The
operator libraries do not depend on Python; the NumPy module does, and is built for each of these
interpreters. With any other interpreter, `linear_sum_assignment` uses SciPy, and
`python -m mfkernels` says so.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
PARTS = ("cpu", "cuda", "numpy")
PYTHONS = os.environ.get("MFKERNELS_PYTHONS", "").split()


def find_tool(*names):
    """Return the path of the first program found, or None; this Python environment comes first."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def find_compiler():
    named = os.environ.get("CXX")
    return find_tool(named.split()[0]) if named else find_tool("c++", "g++", "clang++")


def why_not(build):
    """Return why no native code can be built here, or None."""
    if build == "none":
        return "switched off by MFKERNELS_BUILD=none when it was installed"
    for module in ("torch", "pybind11"):
        if importlib.util.find_spec(module) is None:
            return f"the Python package {module} was not found when it was installed"
    for tool in ("cmake", "ninja"):
        if find_tool(tool) is None:
            return f"{tool} was not found when it was installed"
    if find_compiler() is None:
        return "no C++ compiler was found when it was installed"
    return None


class CMakeBuild(build_ext):
    """Build with CMake into the package folder of the source tree (if editable) or of build_lib."""

    def run(self):
        build = os.environ.get("MFKERNELS_BUILD", "auto")
        if build not in ("auto", "cpu", "none"):
            raise CompileError(f"MFKERNELS_BUILD is {build!r}, expected 'auto', 'cpu' or 'none'")
        target = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "mfkernels"
        target.mkdir(parents=True, exist_ok=True)
        reason = why_not(build)
        if reason is not None:
            print(f"mfkernels: installing without native code: {reason}", file=sys.stderr)
            self.remove_native(target)
            record = dict.fromkeys(PARTS, reason)
            (target / "native_build.json").write_text(json.dumps(record) + "\n")
            return
        portable = []
        if PYTHONS:
            missing = [name for name in PYTHONS if find_tool(name) is None]
            if missing:
                raise CompileError(f"MFKERNELS_PYTHONS: not found: {', '.join(missing)}")
            portable = ["-DMFK_MANYLINUX=ON", f"-DMFK_PYTHONS={';'.join(map(find_tool, PYTHONS))}"]
        folder = Path(self.build_temp).resolve() / "cmake"
        folder.mkdir(parents=True, exist_ok=True)
        # A CMake cache of another environment may hold paths that no longer exist: pip deletes its
        # isolated build environments.
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
        try:
            self.cmake(
                "-S",
                ROOT,
                "-B",
                folder,
                "-GNinja",
                f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DMFK_CUDA={'OFF' if build == 'cpu' else 'ON'}",
                *portable,
            )
            self.cmake("--build", folder)
            self.remove_native(target)
            self.cmake("--install", folder, "--prefix", target)
        except subprocess.CalledProcessError as error:
            raise CompileError(
                f"the native code of mfkernels did not build (`{' '.join(map(str, error.cmd))}` "
                f"returned {error.returncode}; its messages are above).\n"
                "To install without the CUDA kernels set MFKERNELS_BUILD=cpu, "
                "without any native code MFKERNELS_BUILD=none."
            ) from None

    def remove_native(self, target):
        for stale in target.glob("_*.so"):
            stale.unlink()

    def cmake(self, *arguments):
        subprocess.run([find_tool("cmake"), *map(str, arguments)], check=True)

    def get_outputs(self):
        folder = Path(self.build_lib) / "mfkernels"
        return [str(path) for path in (*folder.glob("_*.so"), folder / "native_build.json")]

    def get_output_mapping(self):
        return {}


class Wheel(bdist_wheel):
    def get_tag(self):
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if PYTHONS else (python, abi, platform)


setup(
    ext_modules=[Extension("mfkernels._numpy", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
