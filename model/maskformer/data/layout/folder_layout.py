"""Images with one label file each: which folders, which split, which values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from operator import attrgetter
from pathlib import Path, PurePosixPath

import numpy as np

from maskformer.data.label_reader import read_labels
from maskformer.data.layout.pairs import LABEL_SUFFIXES, Folders, Pair
from maskformer.data.layout.split_names import split_of, without_split
from maskformer.data.progress import track
from maskformer.data.sample import evenly_spread
from maskformer.errors import DatasetError
from maskformer.system.text import escape

MAX_VALUES = 1000
"""Label files with more values than this number objects, or are pictures."""
MAX_COLORS = 64
"""Label files with more colours than this are pictures."""
LOOKS = 3
READ = 200
_LABEL_WORDS = re.compile("label|mask|annot|gt|seg|class", re.IGNORECASE)
_OBJECT_WORDS = re.compile("object|instance", re.IGNORECASE)
_OTHER_WORDS = re.compile("visual|color|colour|overlay|preview|poly", re.IGNORECASE)


@dataclass(frozen=True)
class FolderLayout:
    """Images and labels that `format: folder` reads.

    Attributes:
        train, val: where they are; without a `val` of its own, it is drawn from `train`.
        objects: the folder of object numbers for each split, if there is one.
        lists: text files that list the images of train and of val.
        values: the raw values found in label files, sorted.
        read: how many label files that took.
        colors: the values are colours, as `read_labels` gives them.
    """

    train: Pair
    val: Pair | None
    objects: tuple[str | None, str | None]
    lists: tuple[str, str] | None
    values: tuple[int, ...]
    read: int
    colors: bool


def folder_layouts(
    root: Path,
    folders: Folders,
    found: Sequence[Pair],
    files: Sequence[str],
    *,
    colors: bool = False,
) -> list[FolderLayout]:
    """The data sets below a folder that are images with label files; the best one of each.

    Args:
        found: the `pairs` of the folders.
        colors: look for label files whose colours are the classes.

    Raises:
        DatasetError: label files cannot be read.
    """
    named = [pair for pair in found if _may_hold_labels(pair, colors=colors)]
    # Where many folders hold the same names, each file has a part in many pairs.
    why_none = cache(partial(_why_none, root, colors=colors))
    labels = [
        pair
        for pair in track(named, len(named), "Looking for labels")
        if not any(map(why_none, _first_labels(pair, folders)))
    ]
    return [
        _describe(root, train, val, found, folders, files, colors=colors)
        for train, val in _best_splits(_nearest(labels))
    ]


def rejected_labels(root: Path, folders: Folders, found: Sequence[Pair]) -> str:
    """Why the first files that are called like labels hold none; empty if none are."""
    for pair in found:
        words = (f"{pair.images}/{pair.image_suffix}", f"{pair.partners}/{pair.partner_suffix}")
        if [bool(_LABEL_WORDS.search(name)) for name in words] == [False, True]:
            reasons = (_why_none(root, name, colors=False) for name in _first_labels(pair, folders))
            return next(filter(None, reasons), "")
    return ""


def _nearest(labels: Sequence[Pair]) -> list[Pair]:
    """Of several folders with labels of the same images, or images of the same labels, those that
    lie next to them.
    """
    left = list(labels)
    for key in (attrgetter("images"), attrgetter("partners")):
        depth = {pair: _depth(common_folder(pair.images, pair.partners)) for pair in left}
        most: dict[str, int] = {}
        for pair in left:
            most[key(pair)] = max(most.get(key(pair), 0), depth[pair])
        left = [pair for pair in left if depth[pair] == most[key(pair)]]
    return left


def _depth(folder: str) -> int:
    return len(PurePosixPath(folder).parts)


def _may_hold_labels(pair: Pair, *, colors: bool) -> bool:
    """Whether the partners, by their names, are label files of classes, and the images are not."""
    if not pair.partner_suffix.lower().endswith(LABEL_SUFFIXES):
        return False
    words = f"{pair.partners}/{pair.partner_suffix}"
    images = f"{pair.images}/{pair.image_suffix}"
    if _OBJECT_WORDS.search(words) or _is_labels(images, words):
        return False
    if _OTHER_WORDS.search(words) and not colors:
        return False
    splits = {split_of(pair.images), split_of(pair.partners)} - {None}
    return len(splits) <= 1


def _first_labels(pair: Pair, folders: Folders) -> Iterator[str]:
    for name in islice(filter(pair.has_image, folders[pair.images]), LOOKS):
        yield f"{pair.partners}/{pair.partner(name)}"


def _is_labels(images: str, partners: str) -> bool:
    """Whether it is rather the first folder that sounds like labels."""
    kinds = (_LABEL_WORDS, _OBJECT_WORDS, _OTHER_WORDS)
    first, second = (any(kind.search(name) for kind in kinds) for name in (images, partners))
    return first and not second


def _why_none(root: Path, name: str, *, colors: bool) -> str:
    """Why a file holds no labels of classes; empty if it does."""
    file = root / name
    most = MAX_COLORS if colors else MAX_VALUES
    try:
        count = np.unique(read_labels(file, colors=colors)).size
    except DatasetError as error:
        return str(error)
    return "" if count <= most else f"{escape(file)} has {count} values, expected at most {most}"


def _best_splits(labels: Sequence[Pair]) -> Iterator[tuple[Pair, Pair | None]]:
    """Of each data set its train and val."""
    by_set: dict[str, list[Pair]] = {}
    tops = {_own_set(pair) for pair in labels}
    for pair in labels:
        by_set.setdefault(_data_set(_own_set(pair), tops), []).append(pair)
    for members in by_set.values():
        best = max(members, key=_rank)
        alike = [p for p in members if p.image_suffix == best.image_suffix
                 and p.partner_suffix == best.partner_suffix]  # fmt: skip
        named = {
            word: [p for p in alike if split_of(p.images) == word] for word in ("train", "val")
        }
        if all(named.values()):
            yield max(named["train"], key=_rank), max(named["val"], key=_rank)
        else:
            whole = [p for p in alike if split_of(p.images) != "test"] or alike
            yield max(whole, key=_rank), None


def _own_set(pair: Pair) -> str:
    """The folder that holds images and labels of all splits."""
    return without_split(common_folder(pair.images, pair.partners))


def _data_set(own: str, tops: Iterable[str]) -> str:
    """The outermost of the folders that holds this one."""
    return min(
        (top for top in tops if top == "." or own == top or own.startswith(f"{top}/")), key=len
    )


def common_folder(first: str, second: str) -> str:
    """The folder that holds both."""
    return os.path.commonpath([first, second]) or "."


def _rank(pair: Pair) -> tuple[bool, int, int]:
    """Folders that sound like labels are better, then more images, then the innermost folder."""
    words = bool(_LABEL_WORDS.search(f"{pair.partners}/{pair.partner_suffix}"))
    return words, pair.count, pair.images.count("/")


def _describe(
    root: Path,
    train: Pair,
    val: Pair | None,
    found: Sequence[Pair],
    folders: Folders,
    files: Sequence[str],
    *,
    colors: bool,
) -> FolderLayout:
    labels = [
        root / pair.partners / pair.partner(name)
        for pair in (train, val)
        if pair is not None
        for name in folders[pair.images]
        if pair.has_image(name)
    ]
    chosen = [labels[index] for index in evenly_spread(len(labels), READ)]
    values: set[int] = set()
    for file in track(chosen, len(chosen), "Reading labels"):
        values.update(np.unique(read_labels(file, colors=colors)).tolist())
    return FolderLayout(
        train,
        val,
        (_objects(train, found), None if val is None else _objects(val, found)),
        None if val is not None else _lists(train, files),
        tuple(sorted(values)),
        len(chosen),
        colors,
    )


def _objects(pair: Pair, found: Sequence[Pair]) -> str | None:
    """The folder that numbers the objects in the same images, under the labels' names."""
    for other in found:
        same = (other.images, other.image_suffix, other.partner_suffix)
        if same == (pair.images, pair.image_suffix, pair.partner_suffix) and _OBJECT_WORDS.search(
            other.partners
        ):
            return other.partners
    return None


def _lists(pair: Pair, files: Sequence[str]) -> tuple[str, str] | None:
    """Text files beside the folders that list train and val, as VOC's `ImageSets` do."""
    top = common_folder(pair.images, pair.partners)
    for folder in ("ImageSets/Segmentation", "ImageSets", "splits", "."):
        lists = PurePosixPath(top) / folder
        names = [(lists / f"{split}.txt").as_posix() for split in ("train", "val")]
        if all(name in files for name in names):
            return names[0], names[1]
    return None
