"""Report which native code is built and which backend runs each operation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mfkernels import native
from mfkernels.backend import (
    OPERATIONS,
    Backend,
    Choice,
    failures,
    requested,
    why_not_native,
)
from mfkernels.native import Part


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`; ``str()`` formats it as a table."""

    request: Backend
    parts: tuple[Part, ...]
    build: tuple[tuple[str, str], ...]
    operations: tuple[tuple[str, str, Choice, str], ...]
    """One row per operation and type of device: name, device, backend, why not native."""

    def __str__(self) -> str:
        lines = [f"Requested backend: {self.request}", ""]
        lines += _table(
            ("native code", "state", "why"),
            [
                (part.name, "ready" if part.usable else "missing", part.problem or part.note)
                for part in self.parts
            ],
        )
        lines.append("")
        lines += _table(("operation", "device", "backend", "why not native"), self.operations)
        lines += [
            "",
            "Other devices, such as mps and xpu, use the reference: plain PyTorch.",
        ]
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
    """Report which native code is built, which backend runs each operation, and why.

    ``print(mfkernels.explain())`` and ``python -m mfkernels`` show the report as a table.

    Returns:
        An object with the fields `request` (the backend setting), `parts` (those of the
        native code), `build` (properties of the build by name) and `operations` (one row per
        operation and type of device: name, device, backend, why not native).

    Raises:
        BackendError: ``MFKERNELS_BACKEND`` is unknown.
    """
    request = requested()
    rows = [
        (operation, device_type, *_served_by(operation, device_type, request))
        for operation, devices in OPERATIONS.items()
        for device_type in (*devices, *_other_accelerators())
    ]
    module = native.numpy_module
    build = () if module is None else tuple(module.build_info().items())
    return Explanation(request, tuple(native.parts.values()), build, tuple(rows))


def _other_accelerators() -> tuple[str, ...]:
    """Return this machine's accelerator if it has no kernels, such as ``mps`` or ``xpu``."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return () if found is None or found.type in ("cpu", "cuda") else (found.type,)


def _served_by(operation: str, device_type: str, request: Backend) -> tuple[Choice, str]:
    if request == "reference":
        return "reference", "the reference was requested"
    if OPERATIONS[operation].get(device_type) == "pytorch":
        return "pytorch", "uses PyTorch's own kernels, also under the native setting"
    reason = why_not_native(operation, device_type)
    for (failed, device), why in failures.items():
        if reason is None and (failed, device.type) == (operation, device_type):
            reason = why
    return ("native", "") if reason is None else ("reference", reason)
