"""The data that the names in a pickle of weights stand for: arrays, tensors and their parts.

The functions here replace the functions with these names. They check all arguments, and only make
data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.weights.safe_pickle.machine import (
    Budget,
    Filled,
    Name,
    UnsafePickleError,
    new_dict,
    update,
)

MAX_DIMENSIONS = 16

_NUMERIC = frozenset(
    {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
)  # kind and number of bytes; no objects, strings, records or subarrays
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
TOKENS = frozenset(_STORAGES) | {"numpy.ndarray", *map(str, _STORAGES.values())}
"""Names that may occur as arguments, but not be called."""


@dataclass(frozen=True)
class Storage:
    """The storage of tensors: their numbers `[N]`."""

    values: torch.Tensor


def storage_type(name: Any) -> torch.dtype:
    """Return the dtype of a storage class."""
    dtype = _STORAGES.get(name.path) if isinstance(name, Name) else None
    if dtype is None:
        raise UnsafePickleError("holds a storage of an unsupported type")
    return dtype


def known_names(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Return the functions for the names that a pickle may call."""

    def encode(text: Any, encoding: Any) -> bytes:
        """Make bytes, which Python 3 writes as an encoded string in old protocols."""
        if not isinstance(text, str) or encoding != "latin1":
            raise UnsafePickleError("uses another codec than 'latin1'")
        budget.spend(len(text))
        return text.encode("latin1")

    def mapping(*arguments: Any) -> Any:
        """Make a mapping from no argument, from a dict, or from a list of pairs as in Python 2."""
        given = arguments[-1] if arguments else None
        if isinstance(given, dict):
            return given
        made = new_dict()
        if isinstance(given, Sequence):
            budget.work(len(given))
            pairs = [(key, value) for key, value in given]
            update(made, [key for key, _ in pairs], [value for _, value in pairs])
        return made

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        return _tensor(budget, storage, offset, size, stride)

    known: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": mapping,
        "collections.defaultdict": mapping,
        "collections.Counter": mapping,
        "argparse.Namespace": lambda: _Ignored(),  # the command line in training checkpoints
        "torch.device": lambda *_: _Ignored(),
        "torch.Size": lambda sizes: sizes,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "numpy.dtype": lambda code, *_: _Dtype(code),
        "_codecs.encode": encode,
    }
    for builtins in ("builtins", "__builtin__"):
        known[f"{builtins}.bytes"] = lambda: b""  # old protocols call it for empty arrays
        known[f"{builtins}.set"] = lambda items=(): items
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[f"{module}._reconstruct"] = lambda *_: _Array(budget)
        known[f"{module}.scalar"] = lambda dtype, data: _array(budget, data, dtype, (), "C")[()]
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        known[f"{module}._frombuffer"] = lambda data, dtype, shape, order: (  # protocol 5
            _array(budget, data, dtype, shape, order)
        )
    return known


class _Ignored(Filled):
    """Settings that are stored with the weights and are not used."""

    def fill(self, state: Any) -> None:
        pass


class _Dtype(Filled):
    """A dtype of numbers, with a byte order as its state."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code.lstrip("<>|=") not in _NUMERIC:
            raise UnsafePickleError(f"holds an array of {str(code)[:20]!r}; expected numbers")
        self.dtype = np.dtype(code)

    def fill(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError("an invalid byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(Filled):
    """An array, with its shape, dtype and numbers as its state."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._values: NDArray[Any] | None = None

    def fill(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        values = _array(self._budget, data, dtype, shape, "F" if fortran else "C")
        self._values = values.astype(values.dtype.newbyteorder("="), copy=False)

    def value(self) -> NDArray[Any]:
        if self._values is None:
            raise ValueError("an array without numbers")
        return self._values


def _array(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Make an array that is a view of the bytes (strings in Python 2) in a pickle."""
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array without dtype")
    sizes = _counts(shape)
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | memoryview) or order not in ("C", "F"):
        raise ValueError("an array without bytes")
    budget.spend(len(raw))
    if len(raw) != math.prod(sizes) * dtype.dtype.itemsize:
        raise ValueError(f"an array {list(sizes)} of {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(sizes, order=order)


def _tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    """Make a tensor that is a view of a storage, within its bounds.

    The budget counts it as a copy, because tensors may share numbers or have strides of 0.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without storage")
    sizes, strides, (start,) = _counts(size), _counts(stride), _counts((offset,))
    if len(sizes) != len(strides):
        raise ValueError("a tensor with different numbers of sizes and strides")
    count, values = math.prod(sizes), storage.values
    last = sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    if start > len(values) or (count and start + last >= len(values)):
        raise UnsafePickleError("holds a tensor that reaches outside its storage")
    budget.spend(count * values.element_size())
    return values.as_strided(sizes, strides, start)


def _counts(values: Any) -> tuple[int, ...]:
    """Validate sizes, strides or offsets."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        raise ValueError(f"a shape that is not a tuple of at most {MAX_DIMENSIONS} numbers")
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise ValueError("a shape with values that are not sizes")
    return values
