"""The first call of a kernel on a GPU: a small problem is computed by it and by plain PyTorch.

That is done once for each operation, form of its targets and dtype, and remembered in the user's
cache for this GPU and these versions. Where the kernel is wrong, plain PyTorch serves the operation
from then on, said loudly. The environment variable ``MFKERNELS_FIRST_USE=0`` leaves it out.
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
"""Kernels for CPUs are tested where they are built."""


@dataclass(frozen=True)
class Kernel:
    """What is tried once."""

    operation: str
    form: str
    """How the forms of `selfcheck.problems` begin that are tried."""
    dtype: str
    device: torch.device

    def identity(self) -> dict[str, str]:
        """What the verdict is valid for."""
        return {
            "operation": self.operation,
            "form": self.form,
            "dtype": self.dtype,
            "device": _name(self.device),
            "versions": _versions(),
        }


_settled: set[Kernel] = set()
"""Tried in this process, or being tried."""
_paused = contextvars.ContextVar("first_use_paused", default=False)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Nothing is tried inside of the block."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


def try_out(operation: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Before a call of an operation: its kernel on a small problem, if it was not tried before.

    Raises:
        KernelError: it cannot be started, or gives something else than plain PyTorch.
    """
    tensor = _subject(arguments, named)
    if tensor is None or tensor.device.type not in DEVICE_TYPES:
        return
    kernel = Kernel(operation, _form(arguments), _short(tensor.dtype), tensor.device)
    if kernel in _settled or not _may_be_tried(kernel, tensor):
        return
    _settled.add(kernel)
    problem = remembered(kernel)
    if problem is None:
        with _undisturbed(tensor.device):
            problem = _problem_of(kernel, tensor.dtype)
        remember(kernel, problem)
    if problem:
        raise KernelError(f"on first use, {problem} (verdict in {_file(kernel)})")


def _subject(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """The tensor by whose dtype and device kernels are chosen."""
    first: Any = next(iter((*arguments, *named.values())), None)
    if isinstance(first, (list, tuple)) and first:  # of views
        first = first[0]
    for name in ("embed", "class_logits"):
        first = getattr(first, name, first)
    # Fake tensors and other subclasses do not compute.
    return first if type(first) in (Tensor, Parameter) else None


def _form(arguments: tuple[Any, ...]) -> str:
    targets = next((x for x in arguments if isinstance(x, SegmentTargets)), None)
    if targets is None:
        return ""
    return "masks" if targets.label_map is None else "label map"


def _may_be_tried(kernel: Kernel, tensor: Tensor) -> bool:
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
def _undisturbed(device: torch.device) -> Iterator[None]:
    """By what the caller has switched on: no gradients, mixed precision, errors of waiting."""
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
    """What is wrong, or nothing."""
    from mfkernels.selfcheck.checks import compared
    from mfkernels.selfcheck.inputs import ALIGNED
    from mfkernels.selfcheck.problems import problems

    with torch.device("cpu"):  # where they are made, whatever the caller's default is
        every = list(problems(kernel.device, ALIGNED))
    for problem in every:
        if problem.operation == kernel.operation and problem.form.startswith(kernel.form):
            try:
                wrong = compared(problem.to(kernel.device, dtype)).wrong
            except BackendError as error:
                if isinstance(error.__cause__, RuntimeError):  # of a kernel that cannot be started
                    raise error.__cause__ from None
                return ""  # not served in this form
            if wrong:
                return f"{problem.form} in {kernel.dtype} came out wrong: {wrong[0]}"
    return ""


def remembered(kernel: Kernel) -> str | None:
    """What was wrong when it was tried before; None: it was not."""
    try:
        found = json.loads(_file(kernel).read_text())
        return str(found["problem"]) if found["kernel"] == kernel.identity() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(kernel: Kernel, problem: str) -> None:
    """For later processes; several may do so at once. Without a cache, each tries anew."""
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
    """Of PyTorch and Triton, and a digest of this package's files."""
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


fallback.before_call = try_out
