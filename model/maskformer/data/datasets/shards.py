"""Tar files as WebDataset has them: members that differ only in their suffix are a sample."""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from maskformer.data.image_files.opening import FILE_LIMIT, reason
from maskformer.data.progress import track
from maskformer.errors import DatasetError
from maskformer.system.reading import open_regular
from maskformer.system.text import escape

MOST_SHARDS = 1 << 20
BLOCK = tarfile.BLOCKSIZE
_NAME = re.compile(r"((?:[^\0]*/)?[^./\0]+)\.([^/\0]+)")
"""A sample's name, up to the first dot after the last slash, and the suffix."""
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Member:
    """A file in a shard, as `StoredFile`.

    Attributes:
        shard: the tar file.
        path: its name there.
        start, size: where its bytes are.
    """

    shard: Path
    path: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.path}"

    @property
    def name(self) -> str:
        """Without folders."""
        return self.path.rpartition("/")[2]

    def open(self) -> BinaryIO:
        if self.size > FILE_LIMIT:
            raise OSError(f"it has {self.size:,} bytes, expected at most {FILE_LIMIT:,}")
        window = _Window(open_regular(self.shard), self.start, self.size)
        return cast(BinaryIO, io.BufferedReader(window))


class _Window(io.RawIOBase):
    """A part of a file, as a file; closing it closes the whole."""

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
    """The members of one name.

    Attributes:
        key: the name.
        members: by their suffix in lower case.
    """

    key: str
    members: dict[str, Member]


def find_shards(root: Path, patterns: Sequence[str], key: str) -> list[Path]:
    """The tar files that patterns name, in their order; those of one `*` by name.

    Args:
        root: patterns are relative to it.
        patterns: names with `{000..099}`, `*` or `?`.
        key: the setting that they come from.

    Raises:
        DatasetError: one is missing or named twice, or there are too many.
    """
    names = [*islice(_expand(patterns), MOST_SHARDS + 1)]
    if len(names) > MOST_SHARDS:
        raise DatasetError(f"{key} names more than {MOST_SHARDS:,} shards")
    found: list[Path] = []
    for name in names:
        matches = [name]
        if glob.has_magic(name) and not (root / name).is_file():
            # `Path.glob` takes no pattern that is absolute.
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
    """What is in tar files, by their headers alone.

    Raises:
        DatasetError: one cannot be read, is not whole, or holds a member twice.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [*track(pool.map(read_shard, shards), len(shards), "Reading shards")]


def read_shard(shard: Path) -> list[ShardSample]:
    """The samples of a tar file in the order in which they begin; the order of members does not
    matter. Folders, links and hidden files are passed over. Archives that were joined (`cat`) are
    read one after the other.

    Raises:
        DatasetError: it cannot be read, is not whole, or holds a member twice.
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
    except Exception as error:  # of damaged headers, any
        raise DatasetError(
            f"shard {escape(shard)} cannot be read ({reason(error)}); expected a tar file without "
            "compression, which would have to be read from its beginning"
        ) from None
    return [*samples.values()]


def _read_headers(
    stream: BinaryIO, start: int, shard: Path, samples: dict[str, ShardSample]
) -> int:
    """Adds the samples of the archive that begins at an offset; where its last member ends."""
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
                    f"shard {escape(shard)} holds {escape(member.name)} twice; make it again"
                )
            place = Member(shard, member.name, member.offset_data, member.size)
            sample.members[suffix.lower()] = place
        return archive.offset


def _next_archive(stream: BinaryIO, end: int, shard: Path) -> int | None:
    """Where another archive begins behind the zeros that end one; None where only zeros follow."""
    stream.seek(end)
    block = stream.read(BLOCK)
    # tarfile takes a header that it cannot read for the end.
    if len(block) < BLOCK or any(block):
        raise DatasetError(
            f"shard {escape(shard)} is damaged or cut off behind byte {end:,}: a tar file ends "
            "with blocks of zeros, behind which only another one may follow; copy or make it again"
        )
    while not any(block):
        end += len(block)
        block = stream.read(BLOCK)
        if not block:
            return None
    return end
