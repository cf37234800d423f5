"""GPUs that are not there: what kernels are chosen for them, and what happens where none works."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mfkernels import backend, checks, explain, fallback, use_backend
from mfkernels.backend import BackendError
from mfkernels.fallback import KernelError
from mfkernels.selfcheck.inputs import SMALL
from mfkernels.selfcheck.problems import problems
from mfkernels.triton import devices

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backend, "_logged", set())
    backend.failures.clear()
    devices._present.cache_clear()
    yield
    backend.failures.clear()
    devices._present.cache_clear()


GPUS = {
    "T4": ("Tesla T4", 7, 5, 64, 40),
    "H100": ("NVIDIA H100 80GB HBM3", 9, 0, 227, 132),
    "slice": ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9, 0, 227, 16),
    "next": ("NVIDIA of a later year", 13, 0, 150, 200),
}
"""Name, compute capability, shared memory in KB and multiprocessors."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with these GPUs, as far as PyTorch tells."""

    def have(*names: str) -> None:
        def properties(device: torch.device) -> Any:
            name, major, minor, shared, count = GPUS[names[device.index]]
            return SimpleNamespace(
                name=name,
                major=major,
                minor=minor,
                multi_processor_count=count,
                shared_memory_per_block_optin=shared << 10,
            )

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda x: properties(x).name)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda x: GPUS[names[x.index]][1:3]
        )

    return have


def test_what_a_gpu_says_of_itself(machine: Callable[..., None]) -> None:
    machine("T4", "H100", "slice", "next")
    found = [devices.gpu_of(torch.device("cuda", index)) for index in range(4)]
    assert found[0] == devices.KNOWN["sm_75"]
    assert found[1] == found[2] == devices.KNOWN["sm_90"], "a slice has fewer multiprocessors only"
    assert found[3] == devices.Gpu("sm_130", devices.CONSUMER, 150 << 10)
    assert devices.gpu_of(CPU) == devices.assumed


def test_a_gpu_of_fake_tensors_is_assumed() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert devices.gpu_of(FIRST) == devices.assumed


def test_bfloat16_where_there_is_none(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("T4", "H100")
    given = {
        (dtype, device): SimpleNamespace(dtype=dtype, device=device, is_cuda=True)
        for dtype in (torch.bfloat16, torch.float16)
        for device in (FIRST, SECOND)
    }
    problems = {key: checks.native_problem(tensor) for key, tensor in given.items()}  # type: ignore[arg-type]
    (reason,) = filter(None, problems.values())
    assert problems[torch.bfloat16, FIRST] == reason
    assert reason == "sm_75 does not support bfloat16; use float16 or float32"
    assert backend.select("matching_cost", FIRST, reason) == "reference"
    with use_backend("native"), pytest.raises(BackendError, match="does not support bfloat16"):
        backend.select("matching_cost", FIRST, reason)


@pytest.mark.skipif(
    not backend.part("triton").usable, reason="needs a native kernel to choose on a GPU"
)
def test_two_gpus_are_told_apart(
    machine: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A kernel that one of them cannot start serves the other one."""
    machine("T4", "slice")
    caplog.set_level(logging.WARNING, "mfkernels")
    fallback.give_up("mask_loss", FIRST, KernelError("logits_kernel: OutOfResources: 160 KB"))
    assert backend.select("mask_loss", FIRST) == "reference"
    assert backend.select("mask_loss", SECOND) == "native"
    assert backend.select("matching_cost", FIRST) == "native"
    fallback.give_up("mask_loss", SECOND, KernelError("logits_kernel: no"))
    texts = [record.message for record in caplog.records]
    assert "failed on Tesla T4 (sm_75): logits_kernel: OutOfResources" in texts[0]
    assert "failed on NVIDIA H100 80GB HBM3 MIG 1g.10gb (sm_90)" in texts[1]


def _of_triton() -> dict[str, Exception]:
    triton = pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources, PTXASError

    return {
        "no image": RuntimeError("Triton Error [CUDA]: no kernel image is available for execution"),
        "out of resources": OutOfResources(163840, 65536, "shared memory"),
        "compiler": triton.compiler.errors.CompilationError("x = 1", None, "not supported"),
        "passes": RuntimeError("PassManager::run failed"),
        "assembler": PTXASError("`ptxas` failed with error code 255"),
        "no ptxas": RuntimeError("Cannot find ptxas"),
        "read-only": OSError(errno.EROFS, "Read-only file system", "cache"),
        "not ours": PermissionError(errno.EACCES, "Permission denied", "cache"),
        "full": OSError(errno.ENOSPC, "No space left on device"),
        "no compiler": RuntimeError("Failed to find C compiler. Please specify via CC"),
        "noexec": ImportError("failed to map segment from shared object"),
    }


REMEDIES = {
    "no image": "TORCH_CUDA_ARCH_LIST",
    "no ptxas": "TRITON_PTXAS_PATH",
    "read-only": "TRITON_CACHE_DIR",
    "not ours": "TRITON_CACHE_DIR",
    "full": "TRITON_CACHE_DIR",
    "no compiler": "set CC",
    "noexec": "TRITON_CACHE_DIR",
}


@pytest.mark.skipif(not backend.part("cpu").usable, reason="needs a kernel that could fail")
@pytest.mark.parametrize("failure", list(_of_triton()))
def test_a_launch_that_fails(
    failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain PyTorch serves the call and those after it, said once, with the reason and remedy."""
    from mfkernels.triton.launcher import launch

    error, calls = _of_triton()[failure], 0

    class Kernel:
        __name__ = "sums_kernel"

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def start(**arguments: Any) -> None:
                nonlocal calls
                calls += 1
                raise error

            return start

    def operator(*arguments: Any) -> None:
        launch(Kernel(), (1,), x_ptr=arguments[0])

    problem = next(x for x in problems(CPU, SMALL) if x.operation == "matching_cost")
    with use_backend("reference"):
        (expected,) = problem.function(*problem.inputs)
    monkeypatch.setattr(torch.ops.mfkernels, "matching_cost", operator)
    with use_backend("native"), pytest.raises(BackendError, match="sums_kernel: ") as caught:
        problem.function(*problem.inputs)
    remedy = REMEDIES.get(failure, "python -m mfkernels check --json report.json")
    assert remedy in str(caught.value)
    assert not backend.failures
    caplog.set_level(logging.INFO, "mfkernels")
    for _ in range(2):
        torch.testing.assert_close(problem.function(*problem.inputs), [expected])
    assert calls == 2, "once under native, once under auto"
    warnings = [x.message for x in caplog.records if x.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"its kernel failed on cpu: sums_kernel: {type(error).__name__}: " in warnings[0]
    assert "Remedy: " in warnings[0]
    assert remedy in warnings[0]


AS_ROCM = """
import torch
torch.version.hip, torch.version.cuda = "7.0", None
import mfkernels
from mfkernels.triton import devices, launcher
print(mfkernels.explain())
assert devices.ROCM and not devices.ASSEMBLY
properties = lambda device: type("P", (), {
    "gcnArchName": "gfx942:sramecc+:xnack-", "shared_memory_per_block": 65536})
torch.cuda.is_available, torch.cuda.get_device_properties = lambda: True, properties
assert devices.gpu_of(torch.device("cuda:0")) == devices.KNOWN["gfx942"]
started = []
launcher.start = lambda kernel, grid, **options: started.append(options)
launcher.launch(None, (1,), num_warps=4, maxnreg=168)
assert started == [{"enable_fp_fusion": True, "num_warps": 4}], started
"""


@pytest.mark.skipif(not backend.part("triton").usable, reason="needs Triton")
def test_a_rocm_build_takes_the_pure_form() -> None:
    """No instruction of NVIDIA's, no limit of registers, and `explain` says what serves."""
    result = subprocess.run([sys.executable, "-c", AS_ROCM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "for AMD: uses no NVIDIA instructions" in result.stdout
    (row,) = (x for x in result.stdout.splitlines() if x.startswith("mask_loss") and "cuda" in x)
    assert row.split()[2] == "native"


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_take_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    rows = {(o, d): (choice, why) for o, d, choice, why in explain().operations}
    choice, why = rows["mask_loss", kind]
    assert choice == "reference"
    assert why == f"there are no native kernels for the device type '{kind}'"
    assert backend.select("mask_loss", torch.device(kind)) == "reference"
