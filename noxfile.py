"""The tested range of versions: `make test-versions`, or one part of it: `nox -s 'tests(lowest)'`.

The wheel is built once, with the lowest torch, and every session installs that one file: libtorch's
stable ABI promises that it serves every later torch, and these sessions hold it to that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["wheel", "smoke", "tests"]

VERSIONS = {
    "lowest": ("--resolution", "lowest-direct"),
    "pinned": ("--constraint", "requirements/py{}{}.txt".format(*sys.version_info)),
    "newest": ("--upgrade",),
}
"""Options of `uv pip install` that choose the versions."""

PROJECT = nox.project.load_toml("pyproject.toml")
BUILD_REQUIRES = PROJECT["build-system"]["requires"]


@nox.session
def wheel(session: nox.Session) -> None:
    """Builds the wheel with the lowest torch into dist/, and audits it."""
    session.install(*VERSIONS["lowest"], *BUILD_REQUIRES)
    session.install(*PROJECT["project"]["optional-dependencies"]["release"])
    session.run("python", "tools/make_wheel.py")


@nox.session
@nox.parametrize("versions", list(VERSIONS), ids=list(VERSIONS))
def tests(session: nox.Session, versions: str) -> None:
    """Runs the tests on the installed wheel, but for those that build the native code anew."""
    session.install(*VERSIONS[versions], "-r", "pyproject.toml", "--extra", "test", *BUILD_REQUIRES)
    session.install("--no-deps", "--reinstall", str(built_wheel()))
    # A safe path keeps the source tree, which is the working directory, out of the imports.
    environment = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    builds = (
        "--ignore=tests/installation/test_build.py",
        "--ignore=tests/installation/test_sanitizers.py",
    )
    session.run("pytest", "-n", "auto", *builds, *session.posargs, env=environment)


@nox.session
@nox.parametrize("python,torch", [("3.12", "2.11.0"), ("3.13", "2.14.1")])
def smoke(session: nox.Session, torch: str) -> None:
    """Uses the wheel in a bare environment, where no compiler is found."""
    session.install(f"torch=={torch}", str(built_wheel()))
    session.run("python", "tests/installation/wheel_smoke.py")


def built_wheel() -> Path:
    (wheel,) = Path("dist").glob("*.whl")
    return wheel
