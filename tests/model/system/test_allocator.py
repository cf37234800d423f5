"""Freed memory stays with the process, in processes of their own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys, torch
from maskformer.system.allocator import keep_freed_memory
keep_freed_memory(torch.device(sys.argv[1]))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(30):
    if step == 20:
        before = faults()
    torch.ones(1 << 24)  # 64 MiB
print(faults() - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    pytest.mark.skipif(
        bool(os.environ.keys() & {"GLIBC_TUNABLES", "LD_PRELOAD"})
        or not hasattr(ctypes.CDLL(None), "mallopt"),
        reason="another allocator or other settings than glibc's",
    ),
    pytest.mark.skipif(
        HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(),
        reason="the system maps huge pages",
    ),
]
PAGES = 10 * (1 << 26) // os.sysconf("SC_PAGESIZE")


def page_faults(device: str, **settings: str) -> int:
    """Of ten tensors that are freed again, after twenty."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    output = subprocess.run(
        [sys.executable, "-c", CODE, device],
        env=inherited | settings,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return int(output)


def test_pages_are_used_again_on_a_cpu() -> None:
    assert page_faults("cpu") < 0.1 * PAGES


def test_other_devices_and_settings_keep_the_default() -> None:
    assert page_faults("meta", THP_MEM_ALLOC_ENABLE="0") > 0.5 * PAGES
    assert page_faults("cpu", MALLOC_ARENA_MAX="4", THP_MEM_ALLOC_ENABLE="0") > 0.5 * PAGES
