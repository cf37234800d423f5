"""Tests the supported range of versions: `make test-versions`, or `nox -s 'tests(lowest)'` for one.

The wheel is built once, with the lowest torch, and every session installs that same file. These
sessions thus verify the promise of libtorch's stable ABI, that it works with every later torch.
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
"""Options of `uv pip install` that select the versions."""

PROJECT = nox.project.load_toml("pyproject.toml")
BUILD_REQUIRES = PROJECT["build-system"]["requires"]


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel with the lowest torch into dist/, and audit it."""
    session.install(*VERSIONS["lowest"], *BUILD_REQUIRES)
    session.install(*PROJECT["project"]["optional-dependencies"]["release"])
    session.run("python", "tools/make_wheel.py")


@nox.session
@nox.parametrize("versions", list(VERSIONS), ids=list(VERSIONS))
def tests(session: nox.Session, versions: str) -> None:
    """Run the tests against the installed wheel, except for those that rebuild the native code."""
    session.install(*VERSIONS[versions], "-r", "pyproject.toml", "--extra", "test", *BUILD_REQUIRES)
    session.install("--no-deps", "--reinstall", str(built_wheel()))
    # PYTHONSAFEPATH keeps the working directory off sys.path, so that the tests import the
    # installed wheel and not the source tree.
    environment = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    builds = (
        "--ignore=tests/installation/test_build.py",
        "--ignore=tests/installation/test_sanitizers.py",
    )
    session.run("pytest", "-n", "auto", *builds, *session.posargs, env=environment)


@nox.session
@nox.parametrize("python,torch", [("3.12", "2.11.0"), ("3.13", "2.14.1")])
def smoke(session: nox.Session, torch: str) -> None:
    """Use the wheel in a bare environment, without test dependencies or a compiler."""
    session.install(f"torch=={torch}", str(built_wheel()))
    session.run("python", "tests/installation/wheel_smoke.py")


def built_wheel() -> Path:
    (wheel,) = Path("dist").glob("*.whl")
    return wheel
