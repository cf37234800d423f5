"""Images and label files in WebDataset's shards, with random access instead of streaming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from maskformer.config.schema import WebDatasetConfig
from maskformer.data.datasets.label_maps import LabelledImage, LabelMaps
from maskformer.data.datasets.shards import Member, ShardSample, find_shards, read_shards
from maskformer.data.datasets.split_files import take_share
from maskformer.data.sample import Split
from maskformer.errors import DatasetError
from maskformer.system.listing import count_names
from maskformer.system.text import escape

SHOWN = 8


class WebDataset(LabelMaps):
    """The samples of a split, in the order of its shards.

    The headers of all shards are read first, to find the position of each member. So samples can be
    read by index, and are shuffled, resumed and divided among processes and workers like those of
    any other data set.

    Args:
        config: the shards, the suffixes of their members, and how values are mapped to classes.
        split: the split.

    Attributes:
        shards: the tar files.
        notes: a note on members that are neither images nor labels nor objects, if there are any.

    Raises:
        DatasetError: a shard is missing or damaged, or a sample lacks a member.
    """

    def __init__(self, config: WebDatasetConfig, split: Split) -> None:
        self._samples, self.shards, self.notes = _open(config, split)

        def training() -> Sequence[LabelledImage]:
            return self._samples if split == "train" else _open(config, "train")[0]

        super().__init__(config, split, self._samples, training, escape(config.root))

    @property
    def files(self) -> list[tuple[Member, ...]]:
        """The images, each with its labels and, if there are such members, its objects."""
        return [self._samples.members(k) for k in range(len(self))]


@dataclass(frozen=True, eq=False)
class _Samples(Sequence[LabelledImage]):
    """N samples of M members each, in flat arrays, because every worker process would copy many
    small Python objects.

    Attributes:
        shards: the tar files.
        shard: `[N]`, the index of each sample's tar file.
        places: `[N, M, 2]`, the start and size of each member.
        texts: for each sample, its name and those of its members, separated by NUL.
        spans: `[N, 2]`, the start and end of each sample's names in `texts`.
    """

    shards: Sequence[Path]
    shard: NDArray[np.int32]
    places: NDArray[np.int64]
    texts: bytes
    spans: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, index: slice) -> _Samples: ...

    def __getitem__(self, index: int | slice) -> LabelledImage | _Samples:
        if isinstance(index, slice):
            return self.take([*range(len(self))[index]])
        image, labels, *objects = self.members(index)
        return LabelledImage(self.name(index), image, labels, objects[0] if objects else None)

    def take(self, indices: Sequence[int]) -> _Samples:
        chosen = {key: getattr(self, key)[indices] for key in ("shard", "places", "spans")}
        return replace(self, **chosen)

    def name(self, index: int) -> str:
        return self._names(index)[0]

    def members(self, index: int) -> tuple[Member, ...]:
        shard = self.shards[self.shard[index]]
        places = self.places[index].tolist()
        names = self._names(index)[1:]
        return tuple(
            Member(shard, path, start, size)
            for path, (start, size) in zip(names, places, strict=True)
        )

    def _names(self, index: int) -> list[str]:
        start, end = self.spans[index].tolist()
        return self.texts[start:end].decode(errors="surrogateescape").split("\0")


def _open(config: WebDatasetConfig, split: Split) -> tuple[_Samples, list[Path], tuple[str, ...]]:
    """Return the samples of a split, its shards, and notes on the members that are not used."""
    own: Split = "train" if isinstance(config.val, float) else split
    patterns = config.train if isinstance(config.val, float) or split == "train" else config.val
    shards = find_shards(config.root, patterns, f"data.{own}")
    samples, others = _index(shards, read_shards(shards), config)
    if isinstance(config.val, float):
        taken = take_share(range(len(samples)), config.val, config.seed, split, samples.name)
        samples = samples.take(taken)
    notes = (f"skipped in {escape(config.root)}: {count_names(others, 'of another type')}",)
    return samples, shards, notes if others else ()


def _index(
    shards: Sequence[Path], contents: Sequence[Sequence[ShardSample]], config: WebDatasetConfig
) -> tuple[_Samples, list[str]]:
    """Return all samples, and the names of the members that are not used.

    Raises:
        DatasetError: there are no samples, or a sample lacks a member.
    """
    wanted = config.members
    shard_of: list[int] = []
    places: list[list[tuple[int, int]]] = []
    texts: list[bytes] = []
    others: list[str] = []
    for number, samples in enumerate(contents):
        for sample in samples:
            members = [_first(sample, suffixes) for suffixes in wanted.values()]
            found = [member for member in members if member is not None]
            others += [m.name for m in sample.members.values() if m not in found]
            if not found:
                continue
            if len(found) < len(members):
                key = [*wanted][members.index(None)]
                raise DatasetError(_missing_member(shards[number], sample, key, wanted[key]))
            shard_of.append(number)
            places.append([(member.start, member.size) for member in found])
            names = "\0".join([sample.key, *(member.path for member in found)])
            texts.append(names.encode(errors="surrogateescape"))
    if not shard_of:
        shown = dict.fromkeys(s for samples in contents for x in samples for s in x.members)
        raise DatasetError(
            f"data.image: no shard under {escape(config.root)} has an image .{wanted['image'][0]}; "
            f"the suffixes (from the first dot of a name on) are {_listing([*shown])}"
        )
    ends = np.cumsum([0, *map(len, texts)])
    spans = np.stack([ends[:-1], ends[1:]], 1)
    arrays = np.array(shard_of, np.int32), np.array(places, np.int64)
    return _Samples(shards, *arrays, b"".join(texts), spans), others


def _first(sample: ShardSample, suffixes: Sequence[str]) -> Member | None:
    return next((sample.members[s] for s in suffixes if s in sample.members), None)


def _missing_member(shard: Path, sample: ShardSample, key: str, suffixes: Sequence[str]) -> str:
    return (
        f"data.{key}: shard {escape(shard)} has no member {escape(sample.key)}.{suffixes[0]}; with "
        f"that name it has {_listing([*sample.members])}: all members of a sample must be in one "
        "shard"
    )


def _listing(suffixes: Sequence[str]) -> str:
    shown = ", ".join(f".{escape(suffix)}" for suffix in suffixes[:SHOWN])
    return (shown + (" and more" if len(suffixes) > SHOWN else "")) or "none"
