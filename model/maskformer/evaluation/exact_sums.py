"""Sums of fractions that do not depend on the order of their terms, nor on who added which.

Each term is two whole numbers, of 2^-20 and of 2^-62; whole numbers add up exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

COARSE, FINE = 20, 62
"""Bits behind the point: sums stay below 2^43, of up to 2^20 terms."""


def no_terms(count: int) -> Tensor:
    """`count` sums without terms, int64 `[2, count]`."""
    return torch.zeros(2, count, dtype=torch.int64)


def terms(values: Tensor) -> Tensor:
    """Terms to add to sums: float64 `[..., count]`, not negative, as int64 `[2, ..., count]`."""
    coarse = (values * 2.0**COARSE).floor()
    rest = values - coarse * 2.0**-COARSE
    return torch.stack([coarse.long(), (rest * 2.0**FINE).round().long()])


def totals(sums: Tensor) -> Tensor:
    """int64 `[2, count]` as the nearest float64 `[count]`."""
    pairs = zip(*sums.tolist(), strict=True)
    exact = [((coarse << FINE - COARSE) + fine) / 2**FINE for coarse, fine in pairs]
    return torch.tensor(exact, dtype=torch.float64, device=sums.device)
