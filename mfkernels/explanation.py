"""The table of what native code is built and what serves each operation."""

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
    """What `explain` returns. ``str()`` of it is a table for people."""

    request: Backend
    parts: tuple[Part, ...]
    build: tuple[tuple[str, str], ...]
    operations: tuple[tuple[str, str, Choice, str], ...]
    """One row per operation and type of device: name, device, backend, reason."""

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
        lines += [
            "",
            "Devices that are not named, as mps and xpu, take the reference: plain PyTorch.",
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
    """Say what native code is built, which backend serves each operation, and why not the others.

    ``print(mfkernels.explain())`` and ``python -m mfkernels`` show it as a table.
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
    """Of this machine, such as ``mps`` or ``xpu``, for which there are no kernels."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return () if found is None or found.type in ("cpu", "cuda") else (found.type,)


def _served_by(operation: str, device_type: str, request: Backend) -> tuple[Choice, str]:
    if request == "reference":
        return "reference", "the reference was asked for"
    if OPERATIONS[operation].get(device_type) == "pytorch":
        return "pytorch", "PyTorch's own kernels serve it, also where native is asked for"
    reason = why_not_native(operation, device_type)
    for (failed, device), why in failures.items():
        if reason is None and (failed, device.type) == (operation, device_type):
            reason = why
    return ("native", "") if reason is None else ("reference", reason)
