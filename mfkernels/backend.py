"""Which backend serves a call, and why.

Four can be asked for: ``reference`` (plain PyTorch), ``native`` (a compiled or Triton kernel, or an
error), ``auto`` (native where it can serve the call, otherwise reference with the reason logged
once) and ``verify`` (as ``auto``, and each call once more by plain PyTorch, beside which its result
is held: `mfkernels.verification`). What is asked for comes from `use_backend`, else from the
environment variable ``MFKERNELS_BACKEND``, else it is ``auto``.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
from collections.abc import Iterator
from typing import Literal, get_args

import torch

from mfkernels import native
from mfkernels.native import Part
from mfkernels.torch_internals import is_transformed

Backend = Literal["reference", "native", "auto", "verify"]
Choice = Literal["reference", "native", "pytorch"]
"""What `select` answers. ``pytorch``: PyTorch's own kernels stand for native ones, so that asking
for those is no error."""

OPERATIONS: dict[str, dict[str, str]] = {
    "assignment": {"cpu": "cpu", "cuda": "cuda"},
    "matching_cost": {"cpu": "cpu", "cuda": "triton"},
    "mask_loss": {"cpu": "cpu", "cuda": "triton"},
    # On a CPU there are no launches to save, so that a kernel would have nothing to gain.
    "class_loss": {"cpu": "pytorch", "cuda": "triton"},
    "loss_sums": {"cpu": "pytorch", "cuda": "triton"},
    "focal_dice": {"cpu": "cpu", "cuda": "triton"},
    "point_loss": {"cpu": "cpu", "cuda": "pytorch"},
    "mask_logits": {"cpu": "cpu", "cuda": "pytorch"},
    "sample_points": {"cpu": "cpu", "cuda": "pytorch"},
    "conv3x3": {"cpu": "cpu", "cuda": "pytorch"},
    "semantic_segmentation": {"cpu": "cpu", "cuda": "triton"},
    "panoptic_owners": {"cpu": "cpu", "cuda": "triton"},
}
"""The native code that serves each operation on each type of device."""

_logger = logging.getLogger(__name__)
_BACKENDS: tuple[Backend, ...] = get_args(Backend)
_asked_for: contextvars.ContextVar[Backend | None] = contextvars.ContextVar(
    "mfkernels_backend", default=None
)
_latest: Backend | None = None
"""Of the thread or task that asked last: all that `torch.compile` of PyTorch 2.11 can read."""
_COMPILER_READS_CONTEXT: bool = torch.__version__ >= "2.14"  # as versions, not as texts
_logged: set[tuple[str, str]] = set()


class BackendError(ValueError, RuntimeError):
    """A backend that was asked for is unknown, or cannot serve a call; the message says why."""


def part(name: str) -> Part:
    """A piece of native code: operators of C++ for ``cpu`` and ``cuda``, ``triton``, ``numpy``."""
    return native.parts[name]


def requested() -> Backend:
    """The backend asked for by `use_backend`, the environment, or the default ``auto``."""
    if _COMPILER_READS_CONTEXT or not torch.compiler.is_compiling():
        backend = _asked_for.get()
    else:
        backend = _latest
    if backend is not None:
        return backend
    return _checked("MFKERNELS_BACKEND", os.environ.get("MFKERNELS_BACKEND", "auto"))


def _checked(name: str, value: str) -> Backend:
    for backend in _BACKENDS:
        if value == backend:
            return backend
    expected = ", ".join(map(repr, _BACKENDS))
    raise BackendError(f"{name} is {value!r}, expected one of {expected}")


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Ask for a backend inside a ``with`` block (of this thread or task).

    Args:
        backend: ``"reference"``, ``"native"``, ``"auto"`` or ``"verify"``. Under ``"native"`` a
            call that no native kernel can serve raises `BackendError`, a `RuntimeError`, with the
            reason. None can inside of `torch.func`'s transformations and of forward-mode
            differentiation; a second derivative is plain PyTorch's whatever is asked for.
    """
    global _latest
    token = _asked_for.set(_checked("backend", backend))
    before, _latest = _latest, backend
    try:
        yield
    finally:
        _asked_for.reset(token)
        _latest = before


def why_not_native(operation: str, device_type: str) -> str | None:
    """Why no native kernel serves `operation` on a type of device, or None where one does."""
    if operation not in OPERATIONS:
        raise ValueError(f"operation is {operation!r}, expected one of {', '.join(OPERATIONS)}")
    if device_type not in OPERATIONS[operation]:
        return f"there are no native kernels for the device type {device_type!r}"
    server = OPERATIONS[operation][device_type]
    problem = None if server == "pytorch" else native.parts[server].problem
    if problem is None:
        return None
    if server == "triton":
        return f"the Triton kernels cannot be used: {problem}"
    return f"the native {server} library is missing: {problem}"


_reasons = {
    (operation, device_type): why_not_native(operation, device_type)
    for operation, devices in OPERATIONS.items()
    for device_type in devices
}
"""The answers of `why_not_native`, which do not change while the process lives."""


failures: dict[tuple[str, torch.device], str] = {}
"""Operations whose kernel could not be started on a device, and why: see `mfkernels.fallback`."""


_TRANSFORMED = (
    "it is called inside of a transformation of torch.func (vmap, grad, jvp, ...) or of "
    "forward-mode differentiation, which only plain PyTorch serves"
)


def select(operation: str, device: torch.device, problem: str | None = None) -> Choice:
    """Decide which backend serves one call.

    Args:
        operation: a name from `OPERATIONS`.
        device: where the inputs are.
        problem: why the native kernel cannot serve this particular call, if it cannot.

    Raises:
        BackendError: a native kernel was asked for and cannot serve the call.
    """
    backend = requested()
    if backend == "reference":
        return "reference"
    if OPERATIONS[operation].get(device.type) == "pytorch":
        return "pytorch"
    key = (operation, device.type)
    reason = problem or (_reasons[key] if key in _reasons else why_not_native(*key))
    if reason is None and is_transformed():
        reason = _TRANSFORMED
    if reason is None and failures and not torch.compiler.is_compiling():
        reason = failures.get((operation, device))
    if reason is None:
        return "native"
    if backend == "native":
        raise BackendError(
            f"{operation}: the native backend was asked for but cannot serve this call: {reason}"
        )
    if not torch.compiler.is_compiling():
        _log_once(operation, reason)
    return "reference"


def _log_once(operation: str, reason: str) -> None:
    if (operation, reason) not in _logged:
        _logged.add((operation, reason))
        _logger.info("%s: served by the reference backend: %s", operation, reason)
