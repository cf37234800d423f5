"""Reading files pickled by PyTorch or Python as plain data, without running code in them.

plain    a pickle of NumPy arrays or of tensors, such as detectron2's `.pkl`
legacy   the format of `torch.save` before version 1.6: pickles, followed by the storages
zip      its format since then: an archive of a pickle and one record per storage

All of them are read in this process by our own code. A child process with limits would add another
source of failures and a copy of all weights, and would not be any safer.
"""

from __future__ import annotations

import errno
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from maskformer.errors import WeightsError
from maskformer.system.documents import one_line
from maskformer.weights.safe_pickle.machine import Budget, Machine, UnsafePickleError
from maskformer.weights.safe_pickle.rebuild import TOKENS, Storage, known_names, storage_type

MAX_DIRECTORY = 2 << 20
"""Limit of the directory of an archive in bytes, which is enough for 30,000 storages."""
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_CHUNK = 1 << 20
_STORAGE_OPERATIONS = 20


def read_pickle(file: Path) -> Any:
    """Read containers, numbers, strings, NumPy arrays and PyTorch tensors.

    Strings of Python 2 are decoded as Latin-1, which files from the time of Caffe2 need. Arrays are
    read-only views. Memory is limited to about `machine.GROWTH` times the size of the file.

    Raises:
        ValueError: the file is truncated, names anything else (a function, a class), or exceeds a
            limit (see `machine`).
        OSError: the file cannot be read.
    """
    try:
        with _Capped(file.open("rb", buffering=0)) as stream:
            if stream.peek(4)[:4] == b"PK\x03\x04":
                return _read_zip(stream)
            return _read_plain(memoryview(stream.read()))
    except UnsafePickleError as error:
        raise WeightsError(f"{file} cannot be loaded safely: it {error}") from None
    except Exception as error:  # a broken file causes errors of any type
        # EINVAL: a broken archive may contain a negative offset.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = one_line(str(error) or type(error).__name__)
        raise WeightsError(
            f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged: {reason}"
        ) from error


def _read_plain(data: memoryview) -> Any:
    budget = Budget.of(len(data))
    known = known_names(budget)
    known["torch.storage._load_from_bytes"] = lambda inner: _read_inner(inner, budget)
    machine = Machine(data, budget, known, TOKENS)
    value = machine.load()
    return _read_legacy(data, budget) if type(value) is int and value == _MAGIC else value


def _read_inner(data: Any, budget: Budget) -> Storage:
    """Read a storage inside a pickle, which is a legacy file itself."""
    if not isinstance(data, bytes | memoryview):
        raise ValueError("a storage without bytes")
    if data[:2] == b"PK":
        raise UnsafePickleError("holds an archive in place of a storage")
    storage = _read_legacy(memoryview(data), budget)
    if not isinstance(storage, Storage):
        raise UnsafePickleError("holds other data in place of a storage")
    return storage


def _read_legacy(data: memoryview, budget: Budget) -> Any:
    storages: dict[str, tuple[bytearray, Storage]] = {}

    def find(identity: Any) -> Storage:
        kind, dtype, key, _, count, whole = identity
        if kind != "storage" or type(key) is not str or whole is not None:
            raise UnsafePickleError("refers to data that is not a storage")
        if key not in storages:
            storages[key] = _allocate(dtype, count, len(data), budget)
        return _same(storages[key][1], dtype, count)

    machine = Machine(data, budget, known_names(budget), TOKENS, find)
    if machine.load() != _MAGIC or machine.load() != _PROTOCOL:
        raise ValueError("not a file of torch.save")
    if not machine.load().get("little_endian", True):
        raise UnsafePickleError("was written on a big-endian machine")
    value = machine.load()
    keys = machine.load()
    if not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("it lists other storages than it uses")
    for key in keys:
        buffer, storage = storages[key]
        if machine.unpack("<q") != len(storage.values):
            raise ValueError("a storage of another size")
        buffer[:] = machine.take(len(buffer))
    return value


def _read_zip(stream: _Capped) -> Any:
    size = stream.seek(0, io.SEEK_END)
    budget = Budget.of(size)
    stream.limit = MAX_DIRECTORY
    with zipfile.ZipFile(stream) as archive:
        stream.limit = size
        entries = _entries(archive, size)
        roots = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise ValueError("not a file of torch.save")
        folder = roots[0].removesuffix("data.pkl")
        order = folder + "byteorder"
        if order in entries and archive.read(order) != b"little":
            raise UnsafePickleError("was written on a big-endian machine")
        storages: dict[str, Storage] = {}

        def find(identity: Any) -> Storage:
            kind, dtype, key, _, count = identity
            if kind != "storage" or type(key) is not str:
                raise UnsafePickleError("refers to data that is not a storage")
            if key not in storages:
                entry = entries[f"{folder}data/{key}"]
                buffer, storages[key] = _allocate(dtype, count, entry.file_size, budget)
                if len(buffer) != entry.file_size:
                    raise ValueError("a storage of another size")
                with archive.open(entry) as record:  # verifies the checksum
                    for start in range(0, len(buffer), _CHUNK):
                        buffer[start : start + _CHUNK] = record.read(_CHUNK)
            return _same(storages[key], dtype, count)

        pickled = memoryview(archive.read(roots[0]))
        return Machine(pickled, budget, known_names(budget), TOKENS, find).load()


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the files of an archive of `size` bytes by name, after checking their sizes."""
    listed = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in listed):
        raise UnsafePickleError("is compressed, but torch.save does not compress")
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed) or sum(entry.file_size for entry in listed) > size:
        raise UnsafePickleError("is an archive with entries over each other")
    return entries


class _Capped(io.BufferedReader):
    """Can refuse to read much at once, which `ZipFile` does where an archive lists many files."""

    limit = sys.maxsize

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.limit:
            raise UnsafePickleError(f"lists its files in more than {self.limit:,} bytes")
        return super().read(size)


def _allocate(dtype: Any, count: Any, available: int, budget: Budget) -> tuple[bytearray, Storage]:
    """Allocate a storage; return its bytes, which are to be filled, and the storage."""
    kind = storage_type(dtype)
    if type(count) is not int or not 0 <= count * kind.itemsize <= available:
        raise ValueError("a storage that is larger than its file")
    budget.work(_STORAGE_OPERATIONS)
    budget.spend(count * kind.itemsize)
    buffer = bytearray(count * kind.itemsize)
    values = torch.frombuffer(buffer, dtype=kind) if count else torch.empty(0, dtype=kind)
    return buffer, Storage(values)


def _same(storage: Storage, dtype: Any, count: Any) -> Storage:
    if storage.values.dtype != storage_type(dtype) or len(storage.values) != count:
        raise ValueError("two different storages with the same name")
    return storage
