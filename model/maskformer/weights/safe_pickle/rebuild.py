"""What the names in a pickle of weights stand for: arrays, tensors and their parts.

None of the functions here is the one that the name stands for elsewhere. They check all they are
given, and what they make is data.
"""

from __future__ import annotations

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
    RefusedError,
    new_dict,
    update,
)

MAX_DIMENSIONS = 16

_NUMERIC = frozenset(
    {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
)  # kind and bytes: no objects, text, records or arrays of arrays
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
"""Names that stand for nothing but themselves."""


@dataclass(frozen=True)
class Storage:
    """The numbers of tensors, `[N]`."""

    values: torch.Tensor


def storage_type(name: Any) -> torch.dtype:
    """The dtype of a named kind of storage."""
    dtype = _STORAGES.get(name.path) if isinstance(name, Name) else None
    if dtype is None:
        raise RefusedError("holds a storage of another kind than numbers")
    return dtype


def known_names(budget: Budget) -> dict[str, Callable[..., Any]]:
    """How to make data of what a pickle calls."""

    def encode(text: Any, encoding: Any) -> bytes:
        """How Python 3 writes bytes in old protocols."""
        if not isinstance(text, str) or encoding != "latin1":
            raise RefusedError("asks for another codec than 'latin1'")
        budget.spend(len(text))
        return text.encode("latin1")

    def mapping(*arguments: Any) -> Any:
        """`OrderedDict()`, `Counter({})`, and the list of pairs of Python 2."""
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
    """Settings beside the weights."""

    def fill(self, state: Any) -> None:
        pass


class _Dtype(Filled):
    """What a pickle may say of a dtype: which numbers, in which byte order."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code.lstrip("<>|=") not in _NUMERIC:
            raise RefusedError(f"holds an array of {str(code)[:20]!r}; expected numbers")
        self.dtype = np.dtype(code)

    def fill(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError("no byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(Filled):
    """An array whose shape and numbers follow."""

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
    """A view of the bytes, or of the text of Python 2, that a pickle holds."""
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array without dtype")
    sizes = _counts(shape)
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | memoryview) or order not in ("C", "F"):
        raise ValueError("an array without bytes")
    budget.spend(len(raw))
    if len(raw) != _product(sizes) * dtype.dtype.itemsize:
        raise ValueError(f"an array {list(sizes)} of {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(sizes, order=order)


def _tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    """A view of a storage that lies inside it.

    Each counts as if it were copied: several may share numbers, or have a stride of 0.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without storage")
    sizes, strides, (start,) = _counts(size), _counts(stride), _counts((offset,))
    if len(sizes) != len(strides):
        raise ValueError("a tensor with other strides than sizes")
    count, values = _product(sizes), storage.values
    last = sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    if start > len(values) or (count and start + last >= len(values)):
        raise RefusedError("holds a tensor that reaches outside its storage")
    budget.spend(count * values.element_size())
    return values.as_strided(sizes, strides, start)


def _counts(values: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        raise ValueError(f"a shape that is no tuple of at most {MAX_DIMENSIONS} numbers")
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise ValueError("a shape of other things than sizes")
    return values


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
