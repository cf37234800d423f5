"""Label maps in MATLAB files, as in COCO-Stuff-10K.

SciPy also reads such files, but trusts them: a single wrong byte can crash the process.
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
"""The name of the label map in COCO-Stuff's files."""
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
"""NumPy's name of each MATLAB data type."""
_NUMBERS, _IS_COMPLEX = range(6, 16), 0x800
"""The array classes of numbers (double, single, integers of 8 to 64 bits), and the flag of complex
arrays.
"""


def read_mat(stream: BinaryIO, max_pixels: int) -> NDArray[np.integer]:
    """Read the variable `S` of a MATLAB file of version 5 to 7.3 as `[H, W]` of any integer dtype.

    Raises:
        ValueError: there is no such variable, it is not a map of whole numbers, or the file is
            damaged.
        PixelLimitError: the map has more than `max_pixels`.
        Exception: any type, if the file is damaged.
    """
    mark = stream.read(10)
    stream.seek(0)
    hdf5 = mark == _HDF5_TEXT or mark.startswith(_HDF5_MARK)
    values = _read_hdf5(stream, max_pixels) if hdf5 else _read_version_5(stream, max_pixels)
    if values.dtype.kind == "f" and (np.isfinite(values) & (values == np.floor(values))).all():
        return values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise ValueError(f"its variable {VARIABLE} is {values.dtype}, expected whole numbers")
    return values


class _Element(NamedTuple):
    """A data element of the file: its type, the start and size of its content, and its end."""

    kind: int
    start: int
    size: int
    end: int


class _Matrix(NamedTuple):
    """An array as it is stored; if it is compressed, including its tag."""

    stored: bytes
    compressed: bool

    def first(self, size: int) -> memoryview:
        """Return at least the first `size` bytes of the content. Not all of it is decompressed,
        because a few bytes may expand to gigabytes.
        """
        if not self.compressed:
            return memoryview(self.stored)
        return memoryview(zlib.decompressobj().decompress(self.stored, _TAG + size))[_TAG:]


def _element(data: memoryview, at: int, order: ByteOrder) -> _Element:
    """Return the data element at an offset of `data`."""
    kind, size = struct.unpack_from(f"{order}2I", data, at)
    if kind >> 16:  # the small format, with up to four bytes of content in the tag itself
        return _Element(kind & 0xFFFF, at + 4, min(kind >> 16, 4), at + 8)
    return _Element(kind, at + 8, size, at + 8 + (size + 7) // 8 * 8)


def _read_version_5(stream: BinaryIO, max_pixels: int) -> NDArray[Any]:
    header = stream.read(_HEADER)
    order = _BYTE_ORDERS.get(header[126:128])
    if order is None:
        raise ValueError("it is not a MATLAB file of version 5 to 7.3")
    names = []
    for name, matrix in _matrices(stream, order):
        if name == VARIABLE:
            return _numbers(matrix, order, max_pixels)
        names.append(name)
    raise ValueError(_no_variable(names))


def _matrices(stream: BinaryIO, order: ByteOrder) -> Iterator[tuple[str, _Matrix]]:
    """Yield the arrays with their names."""
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
    # Read a little further, so that the checksum at the end is verified.
    data = matrix.first(content.start + content.size + _LONGEST_HEAD)
    values = np.frombuffer(data, dtype, math.prod(shape), content.start)
    return values.reshape(shape, order="F").astype(dtype.newbyteorder("="))


def _read_hdf5(stream: BinaryIO, max_pixels: int) -> NDArray[Any]:
    """Read version 7.3, which is HDF5 and stores arrays transposed."""
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "it has MATLAB's version 7.3, which needs h5py: pip install h5py, or save it with "
            "MATLAB's option '-v7'"
        ) from None
    with h5py.File(stream, "r") as file:
        link = file.get(VARIABLE, getlink=True)
        # Links and external storage could refer to any other file of the computer.
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
            f"{'' if plain else ' and does not hold real numbers'}, expected numbers [H, W]"
        )
    check_pixels(*shape, max_pixels)
