"""Check scalars that a caller passes: Python or NumPy numbers, or tensors of one element."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless the value is a number (Python's or NumPy's) or a tensor."""
    # `torch.compile` can trace the first check, but not the second.
    if not isinstance(value, (int, float, Tensor)) and not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def as_number(name: str, value: Any) -> float:
    """Convert a number (also NumPy's, or a tensor of one element) to a finite float.

    Raises:
        TypeError: it is not a number, or is a tensor that requires a gradient: as a float, it would
            not get one.
        ValueError: it is NaN or infinite.
    """
    check_number(name, value)
    if isinstance(value, Tensor):
        check_one_number(name, value, learnable=False)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) < math.inf:  # `torch.compile` cannot trace `math.isfinite`
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def as_integer(name: str, value: Any, at_least: int | None = None) -> int:
    """Convert an integer (also NumPy's, or a tensor of one element) to an int.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than `at_least`.
    """
    count = integer_or_none(value)
    if count is None:
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if at_least is not None and count < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {count}")
    return count


def integer_or_none(value: Any) -> int | None:
    """Convert an integer (also NumPy's, or a tensor of one element) to an int; others to None."""
    # Before torch 2.14, the compiler fails on the exception that most of these types would raise.
    if isinstance(value, (bool, float, str, list, tuple)):
        return None
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_one_number(name: str, value: Tensor, learnable: bool) -> None:
    """Raise TypeError unless the tensor is one real number.

    A tensor that requires a gradient is an error too, unless it is `learnable`.
    """
    if value.numel() != 1:
        raise TypeError(
            f"{name} must be one number, got a tensor of shape {list(value.shape)}; weights by "
            "class or pixel can multiply a loss that is not reduced"
        )
    if value.dtype == torch.bool or value.dtype.is_complex:
        raise TypeError(f"{name} must be a real number, got a tensor of {value.dtype}")
    if value.requires_grad and not learnable:
        raise TypeError(f"{name} must be a number here, as it would get no gradient; use detach()")
