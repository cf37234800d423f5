"""The native operators by every instruction set of the library, not only this machine's best."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.repository import ROOT

from mfkernels import backend

FILES = (
    *("conv3x3", "focal_dice", "group_norm", "mask_logits", "mask_loss", "matching_cost"),
    "segmentation/test_segmentation_native.py",
    "window_attention",
)
COMPARISONS = (
    *(
        "agree_in_float32",
        "any_views",
        "definition",
        "exact",
        "finite",
        "float32_is",
        "gradients",
        "pytorchs",
    ),
    *("official", "owners", "restatement", "sampled", "strides", "threads", "torchvisions"),
)


@pytest.mark.skipif(not backend.part("cpu").usable, reason="needs the native library")
@pytest.mark.long
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_equals_the_oracles(instruction_set: str) -> None:
    """In a process of its own, because the choice is made once."""
    files = [f"tests/ops/{file}" for file in FILES]
    names = f"native and ({' or '.join(COMPARISONS)})"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, *files],
        cwd=ROOT,
        env={**os.environ, "MFKERNELS_ISA": instruction_set},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout


@pytest.mark.skipif(not backend.part("cpu").usable, reason="needs the native library")
def test_an_unknown_instruction_set_is_named() -> None:
    code = "import torch, mfkernels; mfkernels.batch_linear_assignment(torch.zeros(1, 2, 2))"
    for name, said in (("avx-512", True), ("avx512_bf16", False), ("avx2", False), ("", False)):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "MFKERNELS_ISA": name},
            capture_output=True,
            text=True,
            check=True,
        )
        expected = "is 'avx-512', expected baseline, avx2, avx512 or avx512_bf16;"
        assert (expected in result.stderr) == said
        assert ("MFKERNELS_ISA" in result.stderr) == said
