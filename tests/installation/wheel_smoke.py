"""What an installed wheel must do on a machine without compiler and without the source tree.

    python tests/installation/wheel_smoke.py

with the Python of an environment into which the wheel is installed. Prints versions, and `passed`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.optimize
import torch

import maskformer
import mfkernels as mfk
from mfkernels import backend

SCRIPTS = Path(sysconfig.get_path("scripts"))
COMPILERS = ("c++", "g++", "cc", "gcc", "clang++", "clang", "nvcc")


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def refusal(function: Callable[..., object], *arguments: object) -> str:
    try:
        function(*arguments)
    except (RuntimeError, ValueError) as error:
        return str(error)
    raise AssertionError(f"{function} took what it must refuse")


def check_environment() -> None:
    installed = Path(sysconfig.get_path("platlib"))
    for package in (mfk, maskformer):
        assert Path(str(package.__file__)).is_relative_to(installed), package.__file__
    assert not any(map(shutil.which, COMPILERS))


def check_parts() -> None:
    assert backend.part("cpu").usable, backend.part("cpu").problem
    assert backend.part("numpy").usable, backend.part("numpy").problem
    if torch.version.cuda is not None:
        assert backend.part("cuda").usable, backend.part("cuda").problem
    table = run(sys.executable, "-m", "mfkernels")
    ready = {line.split()[0] for line in table.splitlines() if line.split()[1:2] == ["ready"]}
    assert {"cpu", "numpy"} <= ready, table


def check_numpy_solver() -> None:
    cost = np.random.default_rng(0).integers(0, 20, (40, 100)).astype(float)
    expected = scipy.optimize.linear_sum_assignment(cost)
    for ours, scipys in zip(mfk.linear_sum_assignment(cost), expected, strict=True):
        assert np.array_equal(ours, scipys)
    assert "infeasible" in refusal(mfk.linear_sum_assignment, np.full((2, 2), np.inf))


def results() -> list[torch.Tensor]:
    """Each operation once, and the gradients of the mask loss."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 12, 6, generator=generator)
    embed = torch.randn(2, 12, 8, generator=generator, requires_grad=True)
    pixels = torch.randn(2, 8, 16, 20, generator=generator, requires_grad=True)
    masks = [torch.rand(count, 64, 80, generator=generator) < 0.4 for count in (3, 5)]
    labels = [torch.randint(0, 5, (len(mask),), generator=generator) for mask in masks]
    targets = mfk.SegmentTargets.from_masks(masks, labels)
    cost = mfk.matching_cost(logits, embed, pixels, targets).detach()
    matched = mfk.batch_linear_assignment(cost.mT, row_counts=targets.counts_tensor())
    losses = mfk.mask_loss(embed, pixels, targets, matched)
    gradients = torch.autograd.grad(sum(losses), (embed, pixels))
    classes = mfk.semantic_segmentation(logits, embed.detach(), pixels.detach(), size=(64, 80))
    return [cost, matched, *losses, *gradients, *classes]


def check_operations() -> None:
    native = results()
    with mfk.use_backend("reference"):
        expected = results()
    for ours, reference in zip(native, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    # An error that passes from our library through libtorch.
    operator = torch.ops.mfkernels.assignment
    refused = refusal(operator, torch.zeros(2, 2), None, None, False, False)
    assert "cost must be [B, R, C]" in refused


def check_command_line() -> None:
    program = str(SCRIPTS / "maskformer")
    assert "train" in run(program, "--help")
    assert "ade20k/r50" in run(program, "info").split()
    assert maskformer.MaskFormer.from_config("quickstart", num_classes=3) is not None


def main() -> None:
    os.environ["PATH"] = str(SCRIPTS)
    os.environ["MFKERNELS_BACKEND"] = "native"
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        check_environment()
        check_parts()
        check_numpy_solver()
        check_operations()
        check_command_line()
        os.chdir("/")
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"passed: mfkernels {mfk.__version__}, torch {torch.__version__}, Python {version}")


if __name__ == "__main__":
    main()
