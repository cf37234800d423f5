"""Label maps in MATLAB files, as COCO-Stuff-10K has them.

SciPy reads such files too, but believes them: one wrong byte can end the process.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskformer.data.image_files.opening import check_pixels

SUFFIX = ".mat"
VARIABLE = "S"
"""COCO-Stuff's name of the label map."""
_HDF5_TEXT, _HDF5_MARK = b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n"
ByteOrder = Literal["<", ">"]
_BYTE_ORDERS: dict[bytes, ByteOrder] = {b"IM": "<", b"MI": ">"}
_HEADER, _TAG, _LONGEST_HEAD = 128, 8, 4096
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""NumPy's name of each type of stored numbers."""
_NUMBERS, _IS_COMPLEX = range(6, 16), 0x800
"""Classes of arrays: double, single and integers of 8 to 64 bits; and a flag."""


def read_mat(stream: BinaryIO, max_pixels: int) -> NDArray[np.integer]:
    """The variable `S` of a file of the versions 5 to 7.3, `[H, W]`, any integer dtype.

    Raises:
        ValueError: there is no such variable, it is no map of whole numbers, or the file is
            damaged.
        PixelLimitError: it is larger than `max_pixels`.
        Exception: of any type, where the file is damaged.
    """
    mark = stream.read(10)
    stream.seek(0)
    hdf5 = mark == _HDF5_TEXT or mark.startswith(_HDF5_MARK)
    values = _read_hdf5(stream, max_pixels) if hdf5 else _read_version_5(stream, max_pixels)
    if values.dtype.kind == "f" and (np.isfinite(values) & (values == np.floor(values))).all():
        return values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise ValueError(f"its variable {VARIABLE} is of {values.dtype}, expected whole numbers")
    return values


class _Element(NamedTuple):
    """A piece of the file: what it is, where its content begins, and where the next piece does."""

    kind: int
    start: int
    size: int
    end: int


class _Matrix(NamedTuple):
    """An array as it is stored; packed, with its tag."""

    stored: bytes
    packed: bool

    def first(self, size: int) -> memoryview:
        """The content up to `size`, or more: a few packed bytes may become gigabytes."""
        if not self.packed:
            return memoryview(self.stored)
        return memoryview(zlib.decompressobj().decompress(self.stored, _TAG + size))[_TAG:]


def _element(data: memoryview, at: int, order: ByteOrder) -> _Element:
    """The piece that begins at an offset of `data`."""
    kind, size = struct.unpack_from(f"{order}2I", data, at)
    if kind >> 16:  # up to four bytes follow in the same eight
        return _Element(kind & 0xFFFF, at + 4, min(kind >> 16, 4), at + 8)
    return _Element(kind, at + 8, size, at + 8 + (size + 7) // 8 * 8)


def _read_version_5(stream: BinaryIO, max_pixels: int) -> NDArray[Any]:
    header = stream.read(_HEADER)
    order = _BYTE_ORDERS.get(header[126:128])
    if order is None:
        raise ValueError("it is no MATLAB file of the versions 5 to 7.3")
    names = []
    for name, matrix in _matrices(stream, order):
        if name == VARIABLE:
            return _numbers(matrix, order, max_pixels)
        names.append(name)
    raise ValueError(_no_variable(names))


def _matrices(stream: BinaryIO, order: ByteOrder) -> Iterator[tuple[str, _Matrix]]:
    """The arrays and their names."""
    while tag := stream.read(_TAG):
        kind, size = struct.unpack(f"{order}2I", tag)
        stored = stream.read(size)
        if kind in (_MATRIX, _COMPRESSED):
            matrix = _Matrix(stored, kind == _COMPRESSED)
            yield _name(matrix.first(_LONGEST_HEAD), order), matrix


def _name(matrix: memoryview, order: ByteOrder) -> str:
    flags = _element(matrix, 0, order)
    sides = _element(matrix, flags.end, order)
    name = _element(matrix, sides.end, order)
    return str(matrix[name.start : name.start + name.size], "latin-1")


def _numbers(matrix: _Matrix, order: ByteOrder, max_pixels: int) -> NDArray[Any]:
    head = matrix.first(_LONGEST_HEAD)
    flags = _element(head, 0, order)
    (about,) = struct.unpack_from(f"{order}I", head, flags.start)
    sides = _element(head, flags.end, order)
    shape = struct.unpack_from(f"{order}{sides.size // 4}i", head, sides.start)
    content = _element(head, _element(head, sides.end, order).end, order)
    plain = about & 0xFF in _NUMBERS and not about & _IS_COMPLEX
    _check_map(shape, max_pixels, plain=plain and content.kind in _TYPES)
    dtype = np.dtype(_TYPES[content.kind]).newbyteorder(order)
    if content.size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"its variable {VARIABLE} has {content.size} bytes, not {list(shape)}")
    # A little more, or the checksum at the end would not be reached.
    data = matrix.first(content.start + content.size + _LONGEST_HEAD)
    values = np.frombuffer(data, dtype, math.prod(shape), content.start)
    return values.reshape(shape, order="F").astype(dtype.newbyteorder("="))


def _read_hdf5(stream: BinaryIO, max_pixels: int) -> NDArray[Any]:
    """Version 7.3, whose arrays are stored the other way round."""
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "it is of MATLAB's version 7.3, for which h5py is needed: pip install h5py, or save it "
            "with MATLAB's option '-v7'"
        ) from None
    with h5py.File(stream, "r") as file:
        link = file.get(VARIABLE, getlink=True)
        # Links and external storage could name any other file of the computer.
        found = file[VARIABLE] if isinstance(link, h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise ValueError(_no_variable(list(file)))
        _check_map(found.shape, max_pixels, plain=found.dtype.kind in "iuf")
        return np.asarray(found).T


def _no_variable(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8]) or "none"
    return f"it has no variable {VARIABLE} with the labels; its variables: {shown}"


def _check_map(shape: tuple[int, ...], max_pixels: int, *, plain: bool) -> None:
    if len(shape) != 2 or not plain or min(shape) < 1:
        raise ValueError(
            f"its variable {VARIABLE} has the size {list(shape)}"
            f"{'' if plain else ' and holds no plain numbers'}, expected numbers [H, W]"
        )
    check_pixels(shape[1], shape[0], max_pixels)
