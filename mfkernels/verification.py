"""``use_backend("verify")``: compare the native result of each call with that of plain PyTorch.

This takes the time and memory of both backends, and synchronises with the device. Gradients are not
compared; ``python -m mfkernels check`` and the trainer's ``train.verify_kernels`` do that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mfkernels.backend import use_backend

Result = TypeVar("Result")

SUSPICIOUS = 1e-3
"""Larger relative errors are reported. Rounding errors are far below this, for half-precision
inputs too, because both backends compute in float32."""

largest_errors: dict[str, float] = {}
"""For each verified operation, the largest error so far: the largest difference divided by the
largest value; for integers, the fraction that differs (assignments of equal cost may differ)."""

_logger = logging.getLogger(__name__)


def verified(operation: str, call: Callable[[], Result]) -> Result:
    """Run a call under ``auto``, compare its result with plain PyTorch's, and return it."""
    with use_backend("auto"):
        ours = call()
    with use_backend("reference"), torch.no_grad():
        plain = call()
    pairs = zip(tree_leaves(ours), tree_leaves(plain), strict=True)
    error = max((difference(a, b) for a, b in pairs if isinstance(b, Tensor)), default=0.0)
    largest_errors[operation] = max(error, largest_errors.get(operation, 0.0))
    if not error <= SUSPICIOUS and operation != "assignment":
        _logger.warning(
            "%s: the native result differs from plain PyTorch's by %.1e of its largest value; "
            "run `python -m mfkernels check` for details",
            operation,
            error,
        )
    return ours


def difference(ours: Tensor, plain: Tensor) -> float:
    """Return the largest difference divided by the largest finite value of `plain`.

    For integers, return the fraction that differs.
    """
    if plain.numel() == 0:
        return 0.0
    if not plain.is_floating_point():
        return float((ours != plain).double().mean())
    ours, plain = ours.detach().double(), plain.double()
    same = (ours == plain) | (ours.isnan() & plain.isnan())
    scale = plain[plain.isfinite()].abs().max().clamp(min=1e-30) if plain.isfinite().any() else 1.0
    return float(((ours - plain).abs() / scale).where(~same, 0.0).max())
