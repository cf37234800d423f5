"""Check a kernel on a small problem against plain PyTorch before its first call on a GPU.

This is done once for each operation, form of its targets (label map or masks) and dtype; the result
is cached on disk for this GPU and these versions. If a kernel is wrong, a warning is logged, and
the operation runs in plain PyTorch from then on. ``MFKERNELS_FIRST_USE=0`` disables the check.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mfkernels import fallback
from mfkernels.backend import (
    OPERATIONS,
    BackendError,
    failures,
    requested,
    why_not_native,
)
from mfkernels.fallback import KernelError
from mfkernels.native import FOLDER
from mfkernels.targets import SegmentTargets
from mfkernels.torch_internals import is_observed, is_transformed

VARIABLE = "MFKERNELS_FIRST_USE"
DEVICE_TYPES = ("cuda",)
"""CPU kernels need no check at run time: they are tested where they are built."""


@dataclass(frozen=True)
class Kernel:
    """The unit of checking: each of these is checked once."""

    operation: str
    form: str
    """The problems of `selfcheck.problems` whose form begins with this are checked."""
    dtype: str
    device: torch.device

    def identity(self) -> dict[str, str]:
        """Return everything that the result depends on."""
        return {
            "operation": self.operation,
            "form": self.form,
            "dtype": self.dtype,
            "device": _name(self.device),
            "versions": _versions(),
        }


_settled: set[Kernel] = set()
"""The kernels that were checked in this process, or are being checked."""
_paused = contextvars.ContextVar("first_use_paused", default=False)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Suspend all checks inside the block."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


def check_first_use(operation: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Check the kernel of an operation on a small problem, unless it was checked before.

    Raises:
        KernelError: the kernel cannot be launched, or its result differs from plain PyTorch's.
    """
    tensor = _deciding_tensor(arguments, named)
    if tensor is None or tensor.device.type not in DEVICE_TYPES:
        return
    kernel = Kernel(operation, _form(arguments), _short(tensor.dtype), tensor.device)
    if kernel in _settled or not _can_be_checked(kernel, tensor):
        return
    _settled.add(kernel)
    problem = load_result(kernel)
    if problem is None:
        with _neutral_context(tensor.device):
            problem = _problem_of(kernel, tensor.dtype)
        save_result(kernel, problem)
    if problem:
        raise KernelError(f"on first use, {problem} (result kept in {_file(kernel)})")


def _deciding_tensor(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """Return the tensor whose dtype and device decide which kernel runs."""
    first: Any = next(iter((*arguments, *named.values())), None)
    if isinstance(first, (list, tuple)) and first:  # views
        first = first[0]
    for name in ("embed", "class_logits"):
        first = getattr(first, name, first)
    # Fake tensors and other subclasses may not compute anything.
    return first if type(first) in (Tensor, Parameter) else None


def _form(arguments: tuple[Any, ...]) -> str:
    targets = next((x for x in arguments if isinstance(x, SegmentTargets)), None)
    if targets is None:
        return ""
    return "masks" if targets.label_map is None else "label map"


def _can_be_checked(kernel: Kernel, tensor: Tensor) -> bool:
    kind = kernel.device.type
    return (
        not _paused.get()
        and os.environ.get(VARIABLE, "1") != "0"
        and requested() != "reference"
        and OPERATIONS[kernel.operation].get(kind) not in (None, "pytorch")
        and why_not_native(kernel.operation, kind) is None
        and (kernel.operation, kernel.device) not in failures
        and (tensor.dtype != torch.float64 or kernel.operation == "assignment")
        and not is_transformed()
        and not is_observed()
        and not (kind == "cuda" and torch.cuda.is_current_stream_capturing())
    )


@contextlib.contextmanager
def _neutral_context(device: torch.device) -> Iterator[None]:
    """Disable what the caller may have enabled: inference mode, autocast, sync debug errors."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    if on_gpu:
        torch.cuda.set_sync_debug_mode("default")
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(before)


def _problem_of(kernel: Kernel, dtype: torch.dtype) -> str:
    """Return what is wrong with a kernel; an empty string if nothing is."""
    from mfkernels.selfcheck.checks import compared
    from mfkernels.selfcheck.inputs import ALIGNED
    from mfkernels.selfcheck.problems import problems

    with torch.device("cpu"):  # inputs are made there, whatever the caller's default device is
        candidates = list(problems(kernel.device, ALIGNED))
    for problem in candidates:
        if problem.operation == kernel.operation and problem.form.startswith(kernel.form):
            try:
                wrong = compared(problem.to(kernel.device, dtype)).wrong
            except BackendError as error:
                if isinstance(error.__cause__, RuntimeError):  # the kernel cannot be launched
                    raise error.__cause__ from None
                return ""  # the kernel does not support this form, so that it cannot be wrong
            if wrong:
                return f"{problem.form} in {kernel.dtype} gave a wrong result: {wrong[0]}"
    return ""


def load_result(kernel: Kernel) -> str | None:
    """Return the result of an earlier check ("" if nothing was wrong); None if there was none."""
    try:
        found = json.loads(_file(kernel).read_text())
        return str(found["problem"]) if found["kernel"] == kernel.identity() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_result(kernel: Kernel, problem: str) -> None:
    """Save the result for later processes; several processes may do so at once.

    Without a writable cache, each process checks again.
    """
    file = _file(kernel)
    content = json.dumps({"kernel": kernel.identity(), "problem": problem}, indent=1)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            temporary.write(content + "\n")
        Path(temporary.name).replace(file)


def _file(kernel: Kernel) -> Path:
    home = os.environ.get("HOME", tempfile.gettempdir())
    base = os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache")
    digest = hashlib.sha256(json.dumps(kernel.identity()).encode()).hexdigest()
    return Path(base, "mfkernels", "first_use", f"{digest[:32]}.json")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"


@functools.cache
def _versions() -> str:
    """Return the versions of PyTorch and Triton, and a digest of this package's files."""
    digest = hashlib.sha256()
    for file in sorted(FOLDER.rglob("*.py")):
        digest.update(file.read_bytes())
    for library in sorted(FOLDER.glob("*.so")):
        digest.update(library.read_bytes())
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return f"torch {torch.__version__}, triton {triton}, files {digest.hexdigest()[:16]}"


fallback.before_call = check_first_use
