"""Which backend serves a call, and why.

Three requests exist: ``reference`` (plain PyTorch), ``native`` (a compiled or Triton kernel, or an
error) and ``auto`` (native where it can serve the call, otherwise reference with the reason logged
once). A request comes from `use_backend`, else from the environment variable ``MFKERNELS_BACKEND``,
else it is ``auto``.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch

from mfkernels.triton import registration

Request = Literal["reference", "native", "auto"]
Choice = Literal["reference", "native"]

OPERATIONS = (
    "assignment",
    "matching_cost",
    "mask_loss",
    "class_loss",
    "focal_dice",
    "mask_logits",
    "sample_points",
    "semantic_segmentation",
    "panoptic_owners",
)

BY_PYTORCH = frozenset({("mask_logits", "cuda"), ("sample_points", "cuda"), ("class_loss", "cpu")})
"""Where PyTorch's own kernels stand for native ones, so that asking for those is no error."""

_logger = logging.getLogger(__name__)
_REQUESTS: tuple[Request, ...] = get_args(Request)
_request: contextvars.ContextVar[Request | None] = contextvars.ContextVar(
    "mfkernels_backend", default=None
)
_latest_request: Request | None = None
"""That of the thread or task that asked last: all that `torch.compile` of PyTorch 2.11 can read."""
_COMPILER_READS_CONTEXT: bool = torch.__version__ >= "2.14"  # as versions, not as texts
_logged: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Part:
    """One piece of native code: where it is, or why it is not there."""

    name: str
    path: Path | None
    problem: str | None

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def note(self) -> str:
        """What else to say about a part that is usable."""
        idle = self.name in ("cuda", "triton") and not torch.cuda.is_available()
        return "idle: torch sees no GPU" if idle else ""


def _build_record(folder: Path) -> dict[str, str]:
    """What the build wrote down about each part: an empty string if built, else the reason."""
    try:
        record: dict[str, str] = json.loads((folder / "native_build.json").read_text())
    except FileNotFoundError:
        return {}
    return record


def _load_libraries(folder: Path) -> dict[str, Part]:
    """Load the operator libraries that exist. Never raises: a problem becomes the part's reason."""
    record = _build_record(folder)
    parts: dict[str, Part] = {}
    for name, needs in (("cpu", None), ("cuda", "cpu")):
        path = folder / f"_torch_{name}.so"
        if not path.exists():
            problem = record.get(name) or "not compiled (install the package to build it)"
            parts[name] = Part(name, None, problem)
        elif needs is not None and not parts[needs].usable:
            parts[name] = Part(name, path, f"needs the {needs} library: {parts[needs].problem}")
        else:
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                parts[name] = Part(name, path, f"cannot be loaded: {error}")
            else:
                parts[name] = Part(name, path, None)
    return parts


def _load_numpy_module(folder: Path) -> tuple[ModuleType | None, Part]:
    # Looked for in this folder only: an editable installation elsewhere must not lend its own.
    specification = PathFinder.find_spec("mfkernels._numpy", [str(folder)])
    if specification is None or specification.loader is None:
        problem = _build_record(folder).get("numpy") or (
            "not compiled for this Python (install the package to build it)"
        )
        return None, Part("numpy", None, problem)
    path = Path(str(specification.origin))
    try:
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    except ImportError as error:
        return None, Part("numpy", path, f"cannot be loaded: {error}")
    return module, Part("numpy", path, None)


_FOLDER = Path(__file__).resolve().parent
_parts = _load_libraries(_FOLDER)
numpy_module, _parts["numpy"] = _load_numpy_module(_FOLDER)
_parts["triton"] = Part("triton", _FOLDER / "triton", registration.register())


def part(name: str) -> Part:
    """A piece of native code: operators of C++ for ``cpu`` and ``cuda``, ``triton``, ``numpy``."""
    return _parts[name]


def requested() -> Request:
    """The backend asked for by `use_backend`, the environment, or the default ``auto``."""
    if _COMPILER_READS_CONTEXT or not torch.compiler.is_compiling():
        request = _request.get()
    else:
        request = _latest_request
    if request is not None:
        return request
    return _checked("MFKERNELS_BACKEND", os.environ.get("MFKERNELS_BACKEND", "auto"))


def _checked(name: str, value: str) -> Request:
    for request in _REQUESTS:
        if value == request:
            return request
    expected = ", ".join(map(repr, _REQUESTS))
    raise ValueError(f"{name} is {value!r}, expected one of {expected}")


@contextlib.contextmanager
def use_backend(backend: Request) -> Iterator[None]:
    """Ask for a backend inside a ``with`` block (of this thread or task).

    Args:
        backend: ``"reference"``, ``"native"`` or ``"auto"``. Under ``"native"`` a call that no
            native kernel can serve raises `RuntimeError` with the reason.
    """
    global _latest_request
    token = _request.set(_checked("backend", backend))
    _latest_request = _request.get()
    try:
        yield
    finally:
        _request.reset(token)
        _latest_request = _request.get()


def why_not_native(operation: str, device_type: str) -> str | None:
    """Why no native kernel serves `operation` on a kind of device, or None where one does."""
    if operation not in OPERATIONS:
        raise ValueError(f"operation is {operation!r}, expected one of {', '.join(OPERATIONS)}")
    library = _parts.get(device_type)
    if library is None:
        return f"there are no native kernels for the device type {device_type!r}"
    if (operation, device_type) in BY_PYTORCH:
        return None
    if _has_kernel(f"mfkernels::{operation}", device_type.upper()):
        return None
    triton = _parts["triton"]
    if device_type == "cuda" and operation in registration.OPERATORS and triton.problem:
        return f"the Triton kernels cannot be used: {triton.problem}"
    if library.problem is not None:
        return f"the native {library.name} library is missing: {library.problem}"
    return f"there is no native {device_type} kernel for it yet"


def _has_kernel(name: str, dispatch_key: str) -> bool:
    namespace, operator = name.split("::")
    if not hasattr(getattr(torch.ops, namespace), operator):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, dispatch_key)


def select(operation: str, device: torch.device, problem: str | None = None) -> Choice:
    """Decide which backend serves one call.

    Args:
        operation: a name from `OPERATIONS`.
        device: where the inputs are.
        problem: why the native kernel cannot serve this particular call, if it cannot.

    Raises:
        RuntimeError: a native kernel was asked for and cannot serve the call.
    """
    request = requested()
    if request == "reference":
        return "reference"
    reason = _native[operation, device.type] if problem is None else problem
    if reason is None:
        return "native"
    if request == "native":
        raise RuntimeError(
            f"{operation}: the native backend was asked for but cannot serve this call: {reason}"
        )
    if not torch.compiler.is_compiling():
        _log_once(operation, reason)
    return "reference"


def _log_once(operation: str, reason: str) -> None:
    if (operation, reason) not in _logged:
        _logged.add((operation, reason))
        _logger.info("%s: served by the reference backend: %s", operation, reason)


class _NativeReasons(dict[tuple[str, str], str | None]):
    """`why_not_native`, remembered: the answer cannot change while the process lives."""

    def __missing__(self, key: tuple[str, str]) -> str | None:
        self[key] = reason = why_not_native(*key)
        return reason


_native = _NativeReasons()
for _operation in OPERATIONS:
    for _device_type in ("cpu", "cuda"):
        _native[_operation, _device_type] = why_not_native(_operation, _device_type)


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns. ``str()`` of it is a table for people."""

    request: Request
    parts: tuple[Part, ...]
    build: tuple[tuple[str, str], ...]
    operations: tuple[tuple[str, str, Choice, str], ...]
    """One row an operation and kind of device: name, device, backend, reason."""

    def __str__(self) -> str:
        lines = [f"Backend asked for: {self.request}", ""]
        lines += _table(
            ("native code", "state", "why"),
            [
                (part.name, "ready" if part.usable else "missing", part.problem or part.note)
                for part in self.parts
            ],
        )
        lines.append("")
        lines += _table(("operation", "device", "backend", "why not native"), self.operations)
        if self.build:
            lines.append("")
            lines += _table(("build", "value"), self.build)
        return "\n".join(lines)

    __repr__ = __str__


def _table(
    header: tuple[str, ...], rows: list[tuple[str, ...]] | tuple[tuple[str, ...], ...]
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, rule, *rows)
    ]


def explain() -> Explanation:
    """Say what native code is built, which backend serves each operation, and why not the others.

    ``print(mfkernels.explain())`` and ``python -m mfkernels`` show it as a table.
    """
    request = requested()
    rows: list[tuple[str, str, Choice, str]] = []
    for operation in OPERATIONS:
        for device_type in ("cpu", "cuda"):
            reason = _native[operation, device_type]
            if (operation, device_type) in BY_PYTORCH:
                reason = "PyTorch's own kernels serve it, also where native is asked for"
            if request == "reference":
                rows.append((operation, device_type, "reference", "the reference was asked for"))
            else:
                choice: Choice = "native" if reason is None else "reference"
                rows.append((operation, device_type, choice, reason or ""))
    build = () if numpy_module is None else tuple(numpy_module.build_info().items())
    return Explanation(request, tuple(_parts.values()), build, tuple(rows))
