"""Choose the backend that runs a call, and say why.

There are four settings:

* ``reference`` runs plain PyTorch.
* ``native`` runs a compiled or Triton kernel, or raises an error.
* ``auto`` runs the native kernel if it supports the call, otherwise plain PyTorch; it logs the
  reason once.
* ``verify`` is ``auto``, but also runs each call in plain PyTorch and compares the two results
  (see `mfkernels.verification`).

The setting comes from `use_backend`, otherwise from the environment variable
``MFKERNELS_BACKEND``, otherwise it is ``auto``.
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
"""What `select` returns. ``pytorch`` means that PyTorch's own kernels are the native implementation
of this operation; the setting ``native`` accepts them."""

OPERATIONS: dict[str, dict[str, str]] = {
    "assignment": {"cpu": "cpu", "cuda": "cuda"},
    "matching_cost": {"cpu": "cpu", "cuda": "triton"},
    "mask_loss": {"cpu": "cpu", "cuda": "triton"},
    # On a CPU there is no launch overhead to save, so a fused kernel would gain nothing.
    "class_loss": {"cpu": "pytorch", "cuda": "triton"},
    "loss_sums": {"cpu": "pytorch", "cuda": "triton"},
    "focal_dice": {"cpu": "cpu", "cuda": "triton"},
    "point_loss": {"cpu": "cpu", "cuda": "pytorch"},
    "mask_logits": {"cpu": "cpu", "cuda": "pytorch"},
    "sample_points": {"cpu": "cpu", "cuda": "pytorch"},
    "conv3x3": {"cpu": "cpu", "cuda": "pytorch"},
    "group_norm": {"cpu": "cpu", "cuda": "pytorch"},
    "window_attention": {"cpu": "cpu", "cuda": "pytorch"},
    "semantic_segmentation": {"cpu": "cpu", "cuda": "triton"},
    "panoptic_owners": {"cpu": "cpu", "cuda": "triton"},
}
"""The native code that runs each operation on each type of device."""

_logger = logging.getLogger(__name__)
_BACKENDS: tuple[Backend, ...] = get_args(Backend)
_requested: contextvars.ContextVar[Backend | None] = contextvars.ContextVar(
    "mfkernels_backend", default=None
)
_latest: Backend | None = None
"""The latest setting of `use_backend` in any thread or task. `torch.compile` of PyTorch 2.11 cannot
trace a context variable and reads this global instead."""
_COMPILER_READS_CONTEXT: bool = torch.__version__ >= "2.14"  # a TorchVersion, not a plain string
_logged: set[tuple[str, str]] = set()


class BackendError(ValueError, RuntimeError):
    """The requested backend is unknown or does not support the call; the message says why."""


def part(name: str) -> Part:
    """Return a part of the native code: `cpu` or `cuda` (C++ operators), `triton` or `numpy`."""
    return native.parts[name]


def requested() -> Backend:
    """Return the setting: of `use_backend`, else of the environment variable, else ``auto``."""
    if _COMPILER_READS_CONTEXT or not torch.compiler.is_compiling():
        backend = _requested.get()
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
    """Set the backend inside a ``with`` block, for this thread or task only.

    Args:
        backend: one of:

            * ``"reference"``: plain PyTorch.
            * ``"native"``: a native kernel. A call that no native kernel supports raises
              `BackendError` with the reason. This includes every call inside a transformation of
              `torch.func` or forward-mode differentiation. Second derivatives always come from
              plain PyTorch.
            * ``"auto"``: a native kernel if one supports the call, otherwise plain PyTorch.
            * ``"verify"``: as ``"auto"``; each call is compared with plain PyTorch, and a
              difference is logged as a warning.

    Raises:
        BackendError: the backend is unknown. `BackendError` is both a `ValueError` and a
            `RuntimeError`.
    """
    global _latest
    token = _requested.set(_checked("backend", backend))
    before, _latest = _latest, backend
    try:
        yield
    finally:
        _requested.reset(token)
        _latest = before


def why_not_native(operation: str, device_type: str) -> str | None:
    """Return why no native kernel runs `operation` on a device type; None if one does.

    Raises:
        ValueError: the operation is unknown.
    """
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
"""The results of `why_not_native`, which do not change while the process runs."""


failures: dict[tuple[str, torch.device], str] = {}
"""Operations whose kernel failed on a device, and why: see `mfkernels.fallback`."""


_TRANSFORMED = (
    "it is inside a transformation of torch.func (vmap, grad, jvp, ...) or forward-mode "
    "differentiation, which only plain PyTorch supports"
)


def select(operation: str, device: torch.device, problem: str | None = None) -> Choice:
    """Choose the backend of one call.

    Args:
        operation: a name from `OPERATIONS`.
        device: the device of the inputs.
        problem: why the native kernel does not support this call; None if it does.

    Raises:
        BackendError: the setting is ``native``, but no native kernel supports the call.
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
            f"{operation}: the native backend was requested but cannot run this call: {reason}"
        )
    if not torch.compiler.is_compiling():
        _log_once(operation, reason)
    return "reference"


def _log_once(operation: str, reason: str) -> None:
    if (operation, reason) not in _logged:
        _logged.add((operation, reason))
        _logger.info("%s: runs in plain PyTorch (reference): %s", operation, reason)
