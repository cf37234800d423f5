"""``use_backend("verify")``: each call is computed natively and by plain PyTorch, and compared.

It takes the time and memory of both, and waits for the device. Gradients are compared by
``python -m mfkernels check`` and by ``train.verify_kernels`` of the trainer, not here.
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
"""Error above which a call is reported: far more than rounding, also of half precision inputs,
as both ways compute in float32."""

largest_errors: dict[str, float] = {}
"""Of each operation that was verified: the largest difference by the largest value; of integers,
the share that differs (assignments of the same cost may)."""

_logger = logging.getLogger(__name__)


def verified(operation: str, call: Callable[[], Result]) -> Result:
    """The result of a call as ``auto`` serves it, after a look at what plain PyTorch says."""
    with use_backend("auto"):
        ours = call()
    with use_backend("reference"), torch.no_grad():
        plain = call()
    pairs = zip(tree_leaves(ours), tree_leaves(plain), strict=True)
    error = max((difference(a, b) for a, b in pairs if isinstance(b, Tensor)), default=0.0)
    largest_errors[operation] = max(error, largest_errors.get(operation, 0.0))
    if not error <= SUSPICIOUS and operation != "assignment":
        _logger.warning(
            "%s: the native result is off from plain PyTorch's by %.1e of its largest value; "
            "`python -m mfkernels check` looks closer",
            operation,
            error,
        )
    return ours


def difference(ours: Tensor, plain: Tensor) -> float:
    """The largest one by the largest value, where both are finite; the share of integers."""
    if plain.numel() == 0:
        return 0.0
    if not plain.is_floating_point():
        return float((ours != plain).double().mean())
    ours, plain = ours.detach().double(), plain.double()
    same = (ours == plain) | (ours.isnan() & plain.isnan())
    scale = plain[plain.isfinite()].abs().max().clamp(min=1e-30) if plain.isfinite().any() else 1.0
    return float(((ours - plain).abs() / scale).where(~same, 0.0).max())
