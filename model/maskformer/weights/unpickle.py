"""Pickle files of plain containers and arrays, read without running what is pickled in them."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_NUMERIC = frozenset("biuf")


def read_pickle(file: Path) -> Any:
    """Reads containers, numbers, text, NumPy arrays and PyTorch tensors.

    Text of Python 2 is read as Latin-1, as the files of the Caffe2 era need it.

    Raises:
        ValueError: the file is truncated, or names anything else (a function, a class).
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        try:
            return _Unpickler(stream).load()
        except _RefusedError as error:
            raise ValueError(f"{file} is refused: {error}") from None
        except OSError:
            raise
        except Exception as error:  # a broken pickle raises any type
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged: {reason}"
            ) from error


class _RefusedError(Exception):
    pass


class _Dtype:
    """What a pickle may say of a dtype: which numbers, in which byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        value = np.dtype(code) if isinstance(code, str) else None
        if value is None or value.kind not in _NUMERIC:
            raise _RefusedError(f"it holds an array of {code!r}; expected numbers")
        self.value: np.dtype[Any] = value

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array that checks what it is filled with before NumPy sees it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        values: Any = (1, tuple(shape), dtype.value, bool(fortran), bytes(memoryview(raw)))
        super().__setstate__(values)


class _Unpickler(pickle.Unpickler):
    """Knows a handful of names, each bound to a function of ours that makes only data.

    The functions are made anew for each file: a pickle may set attributes on what it names.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        super().__init__(stream, encoding="latin1")
        self._known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,
            "numpy.ndarray": lambda *_: _empty_array(),
            "numpy.dtype": lambda *parts: _Dtype(*parts),
            "builtins.bytes": lambda: b"",  # old protocols call it for empty arrays
            "__builtin__.bytes": lambda: b"",
            "_codecs.encode": lambda text, encoding: _encode(text, encoding),
            "torch._utils._rebuild_tensor_v2": lambda *parts: _tensor(*parts),
            "torch.storage._load_from_bytes": lambda data: _storage(data),
        }
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self._known[f"{module}._reconstruct"] = lambda *_: _empty_array()
            self._known[f"{module}.scalar"] = lambda dtype, data: _scalar(dtype, data)
        for module in ("numpy.core.numeric", "numpy._core.numeric"):
            self._known[f"{module}._frombuffer"] = lambda *parts: _from_buffer(*parts)

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise _RefusedError(
                f"it names {module}.{name}, which is code; only containers, numbers, text, arrays "
                "and tensors are read"
            )
        return known


def _empty_array() -> NDArray[Any]:
    """The array that the pickle fills next; the shape that comes with it is always a stand-in."""
    return _Array(0, np.int8)


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> NDArray[Any]:
    """How protocol 5 writes arrays."""
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: Any) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype.value, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols."""
    if encoding != "latin1":
        raise _RefusedError(f"it asks for the codec {encoding!r}; expected 'latin1'")
    return text.encode("latin1")


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    flat = torch.empty(0, dtype=storage.dtype)
    # PyTorch's own reading of a storage; the public way warns that storages have no type.
    flat.set_(storage._untyped_storage)
    return flat.as_strided(size, stride, offset).clone()
