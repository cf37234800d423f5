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
nox.options.sessions = ["wheel", "tests"]

LOWEST = ("--resolution", "lowest-direct")
VERSIONS = {
    "lowest": LOWEST,
    "pinned": ("--constraint", "requirements/py{}{}.txt".format(*sys.version_info)),
    "newest": ("--upgrade",),
}
"""Options of `uv pip install` that choose the versions."""

BUILD_REQUIRES = nox.project.load_toml("pyproject.toml")["build-system"]["requires"]


@nox.session
def wheel(session: nox.Session) -> None:
    """Builds the wheel of this Python with the lowest torch, and audits it."""


@nox.session
@nox.parametrize("versions", list(VERSIONS), ids=list(VERSIONS))
def tests(session: nox.Session, versions: str) -> None:
    """Runs the tests on the installed wheel."""
    (built,) = Path("dist").glob("*.whl")
    session.install(*VERSIONS[versions], "-r", "pyproject.toml", "--extra", "test", *BUILD_REQUIRES)
    session.install("--no-deps", "--reinstall", str(built))
    session.run("uv", "pip", "freeze", silent=False)
    # A safe path keeps the source tree, which is the working directory, out of the imports.
    session.run(
        "pytest",
        "-n",
        "auto",
        *session.posargs,
        env={"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )
