"""Triton kernels serve CUDA tensors, are imported late, and say why when they cannot serve."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from helpers.strategies import Case
from torch._subclasses.fake_tensor import FakeTensorMode

from mfkernels import SegmentTargets, backend, mask_loss, matching_cost, native, use_backend
from mfkernels.ops.common import registration

needs_registration = pytest.mark.skipif(
    backend.part("triton").problem is not None, reason=str(backend.part("triton").problem)
)


@needs_registration
@pytest.mark.parametrize(
    "operation",
    ["matching_cost", "mask_loss", "focal_dice", "semantic_segmentation", "panoptic_owners"],
)
def test_kernels_are_found(operation: str) -> None:
    assert backend.why_not_native(operation, "cuda") is None


def test_importing_the_package_imports_no_kernel() -> None:
    code = (
        "import sys, mfkernels;"
        "kernels = {'mfkernels.ops.mask_loss.triton_launch', 'mfkernels.triton.math', 'triton'};"
        "assert not kernels & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_registration
def test_float64_on_a_gpu_is_left_to_the_reference() -> None:
    case = Case()
    with FakeTensorMode(), torch.device("cuda"):
        inputs = [torch.empty(x.shape, dtype=torch.float64) for x in case.predictions()]
        maps = torch.empty(2, *case.size, dtype=torch.int16)
        labels = [torch.empty(n, dtype=torch.int64) for n in case.counts]
        targets = SegmentTargets.from_label_maps(maps, labels)
        cost = matching_cost(*inputs, targets)
        assert cost.dtype == torch.float64
        assignment = torch.empty(2, 2, 3, dtype=torch.int64)
        with use_backend("native"):
            with pytest.raises(RuntimeError, match=r"matching_cost: .* do not compute in float64"):
                matching_cost(*inputs, targets)
            with pytest.raises(RuntimeError, match=r"mask_loss: .* do not compute in float64"):
                mask_loss(*inputs[1:], targets, assignment)
            assert matching_cost(*(x.float() for x in inputs), targets).dtype == torch.float32


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = native.Part("cpu", None, "not compiled")
    if native.parts["triton"].problem is None:
        assert native.triton_problem(cpu) == "needs the cpu library: not compiled"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if torch.version.cuda is not None:
        assert native.triton_problem(cpu) == "Triton is not installed"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert native.triton_problem(cpu) == "PyTorch is built without CUDA and without ROCm"
    problem = native.Part("triton", None, native.triton_problem(cpu))
    monkeypatch.setitem(native.parts, "triton", problem)
    assert backend.why_not_native("mask_loss", "cuda") == (
        "the Triton kernels cannot be used: PyTorch is built without CUDA and without ROCm"
    )


def test_a_launch_is_imported_by_its_first_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def import_module(name: str) -> ModuleType:
        imported.append(name)
        return math

    monkeypatch.setattr(importlib, "import_module", import_module)
    launch = registration._imported_once("launches", "gcd")
    assert imported == []
    assert (launch(12, 18), launch(4, 6)) == (6, 2)
    assert imported == ["launches"]
