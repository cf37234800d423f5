"""Shared fixtures: threads, seeds and the optional folder of real images."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Kernels of GPUs are what these tests are about, and a user's cache is not theirs.
os.environ.setdefault("MFKERNELS_FIRST_USE", "0")

# test_triton_interpreter.py runs these in processes of their own, where Triton interprets.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*_triton.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin first: no worker of pytest-xdist waits for one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `camvid/` and `coco_panoptic_sample/`; tests that need it skip without
    it.
    """
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
    """Under `nohup`, SIGHUP would be ignored here and in the processes that tests start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
