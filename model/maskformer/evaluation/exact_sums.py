"""Sums of fractions that do not depend on the order of their terms or on the processes.

Each term is stored as two integers, in units of 2^-20 and 2^-62, whose sums are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

COARSE, FINE = 20, 62
"""Fractional bits of the two integers. Sums must stay below 2^43 and have at most 2^20 terms."""


def no_terms(count: int) -> Tensor:
    """Return `count` empty sums, int64 `[2, count]`."""
    return torch.zeros(2, count, dtype=torch.int64)


def terms(values: Tensor) -> Tensor:
    """Convert non-negative float64 values `[..., count]` to terms, int64 `[2, ..., count]`."""
    coarse = (values * 2.0**COARSE).floor()
    rest = values - coarse * 2.0**-COARSE
    return torch.stack([coarse.long(), (rest * 2.0**FINE).round().long()])


def totals(sums: Tensor) -> Tensor:
    """Convert sums, int64 `[2, count]`, to the nearest float64 values `[count]`."""
    pairs = zip(*sums.tolist(), strict=True)
    exact = [((coarse << FINE - COARSE) + fine) / 2**FINE for coarse, fine in pairs]
    return torch.tensor(exact, dtype=torch.float64, device=sums.device)
