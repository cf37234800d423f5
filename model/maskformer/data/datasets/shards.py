"""WebDataset's tar files (shards): members that differ only in the suffix form a sample."""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from maskformer.data.image_files.opening import FILE_LIMIT, reason
from maskformer.data.progress import map_in_threads
from maskformer.errors import DatasetError
from maskformer.system.reading import open_regular
from maskformer.system.text import escape

MAX_SHARDS = 1 << 20
BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"((?:[^\0]*/)?[^./\0]+)\.([^/\0]+)")
"""Matches the name of a sample, up to the first dot after the last slash, and the suffix."""
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Member:
    """A file in a shard; it implements `StoredFile`.

    Attributes:
        shard: the tar file.
        path: the path of the file in it.
        start, size: the position of its first byte and the number of bytes.
    """

    shard: Path
    path: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.path}"

    @property
    def name(self) -> str:
        """The file name without folders."""
        return self.path.rpartition("/")[2]

    def open(self) -> BinaryIO:
        if self.size > FILE_LIMIT:
            raise OSError(f"it has {self.size:,} bytes, expected at most {FILE_LIMIT:,}")
        window = _Window(open_regular(self.shard), self.start, self.size)
        return cast(BinaryIO, io.BufferedReader(window))


class _Window(io.RawIOBase):
    """A range of bytes of a file as a file object; closing it closes the file."""

    def __init__(self, whole: BinaryIO, start: int, size: int) -> None:
        self._whole, self._start, self._size = whole, start, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"position {origin + offset} is before the beginning")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        content = os.pread(self._whole.fileno(), wanted, self._start + self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._whole.close()
        super().close()


class ShardSample(NamedTuple):
    """The members of a shard that form a sample.

    Attributes:
        key: their common name.
        members: the members by suffix, in lower case.
    """

    key: str
    members: dict[str, Member]


def find_shards(root: Path, patterns: Sequence[str], key: str) -> list[Path]:
    """Find the tar files that match patterns, in the order of the patterns and of the numbers in
    braces. The matches of a wildcard are sorted by name.

    Args:
        root: the folder that patterns are relative to.
        patterns: names with `{000..099}`, `*` or `?`.
        key: the setting that they come from.

    Raises:
        DatasetError: a file is missing or matched twice, or there are too many.
    """
    names = [*islice(_expand(patterns), MAX_SHARDS + 1)]
    if len(names) > MAX_SHARDS:
        raise DatasetError(f"{key} names more than {MAX_SHARDS:,} shards")
    found: list[Path] = []
    for name in names:
        matches = [name]
        if glob.has_magic(name) and not (root / name).is_file():
            # `Path.glob` does not support absolute patterns.
            matches = sorted(glob.glob(name, root_dir=root))  # noqa: PTH207
        files = [root / match for match in matches if (root / match).is_file()]
        if not files:
            raise DatasetError(
                f"{key}: there is no file {escape(root / name)}; set data.root or {key}"
            )
        found += files
    if len({*found}) < len(found):
        twice = next(file for k, file in enumerate(found) if file in found[:k])
        raise DatasetError(f"{key} names {escape(twice)} twice")
    return found


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        numbers = _NUMBERS.search(pattern)
        if numbers is None:
            yield pattern
            continue
        before, after = pattern[: numbers.start()], pattern[numbers.end() :]
        first, last = numbers.groups()
        for number in range(int(first), int(last) + 1):
            yield from _expand([f"{before}{number:0{len(first)}}{after}"])


def read_shards(shards: Sequence[Path]) -> list[list[ShardSample]]:
    """List the samples of tar files by reading their headers only.

    Raises:
        DatasetError: a file cannot be read, is truncated, or contains a member twice.
    """
    return [*map_in_threads(read_shard, shards, "Reading shards")]


def read_shard(shard: Path) -> list[ShardSample]:
    """List the samples of a tar file in the order of their first members; the members of a sample
    need not be adjacent. Folders, links and hidden files are skipped. Concatenated archives (`cat`)
    are read one after the other.

    Raises:
        DatasetError: the file cannot be read, is truncated, or contains a member twice.
    """
    samples: dict[str, ShardSample] = {}
    try:
        with open_regular(shard) as stream:
            start: int | None = 0
            while start is not None:
                end = _read_headers(stream, start, shard, samples)
                start = _next_archive(stream, end, shard)
    except DatasetError:
        raise
    except Exception as error:  # damaged headers cause errors of any type
        raise DatasetError(
            f"shard {escape(shard)} cannot be read ({reason(error)}); expected an uncompressed tar "
            "file, because samples are read in any order"
        ) from None
    return [*samples.values()]


def _read_headers(
    stream: BinaryIO, start: int, shard: Path, samples: dict[str, ShardSample]
) -> int:
    """Add the samples of the archive at offset `start`; return where its last member ends."""
    last = -1
    stream.seek(start)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.offset <= last or member.size < 0:
                raise tarfile.ReadError("a header states a size below 0")
            last = member.offset
            parts = _NAME.fullmatch(member.name)
            if parts is None or not member.isreg() or member.issparse():
                continue
            key, suffix = parts[1], parts[2]
            sample = samples.setdefault(key, ShardSample(key, {}))
            if suffix.lower() in sample.members:
                raise DatasetError(
                    f"shard {escape(shard)} holds {escape(member.name)} twice; create it again"
                )
            place = Member(shard, member.name, member.offset_data, member.size)
            sample.members[suffix.lower()] = place
        return archive.offset


def _next_archive(stream: BinaryIO, end: int, shard: Path) -> int | None:
    """Return the offset of the next archive after the zeros that end one, or None at the end."""
    stream.seek(end)
    block = stream.read(BLOCK)
    # tarfile treats a header that it cannot read as the end of the archive.
    if len(block) < BLOCK or any(block):
        raise DatasetError(
            f"shard {escape(shard)} is damaged or cut off after byte {end:,}: a tar file ends with "
            "blocks of zeros, after which only another tar file may follow; copy or create it again"
        )
    while not any(block):
        end += len(block)
        block = stream.read(BLOCK)
        if not block:
            return None
    return end
