"""Shared fixtures: random seeds, signal handling and the optional folder of real images."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Disable the check of GPU kernels on first use: the tests check the kernels themselves, and must
# not depend on results in the user's cache.
os.environ.setdefault("MFKERNELS_FIRST_USE", "0")

# test_triton_interpreter.py runs these files in separate processes with Triton's interpreter.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*_triton.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start long tests first, so that pytest-xdist's workers do not idle at the end while one runs
    a long test.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with `camvid/` and `coco_panoptic_sample/`; without it, tests that use it skip."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MFKERNELS_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("needs real images: set MFKERNELS_TEST_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    """Restore SIGHUP's default action: under `nohup` it would be ignored, here and in the processes
    that tests start.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
