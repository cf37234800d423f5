"""Images with one label file each: which folders, which split, which values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath

import numpy as np

from maskformer.data.label_reader import read_labels
from maskformer.data.layout.pairs import LABEL_SUFFIXES, Folders, Pair, pairs
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
    root: Path, folders: Folders, files: Sequence[str], *, colors: bool = False
) -> list[FolderLayout]:
    """The data sets below a folder that are images with label files; the best one of each.

    Args:
        colors: look for label files whose colours are the classes.

    Raises:
        DatasetError: label files cannot be read.
    """
    found = pairs(folders)
    labels = [pair for pair in found if _holds_labels(root, pair, folders, colors=colors)]
    return [
        _describe(root, train, val, found, folders, files, colors=colors)
        for train, val in _best_splits(_nearest(labels))
    ]


def rejected_labels(root: Path, folders: Folders) -> str:
    """Why the first files that are called like labels hold none; empty if none are."""
    for pair in pairs(folders):
        words = (f"{pair.images}/{pair.image_suffix}", f"{pair.partners}/{pair.partner_suffix}")
        if [bool(_LABEL_WORDS.search(name)) for name in words] == [False, True]:
            reasons = (_why_none(file, colors=False) for file in _first_labels(root, pair, folders))
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


def _holds_labels(root: Path, pair: Pair, folders: Folders, *, colors: bool) -> bool:
    """Whether the partners are label files of classes, and the images are no such thing."""
    if not pair.partner_suffix.lower().endswith(LABEL_SUFFIXES):
        return False
    words = f"{pair.partners}/{pair.partner_suffix}"
    images = f"{pair.images}/{pair.image_suffix}"
    if _OBJECT_WORDS.search(words) or _is_labels(images, words):
        return False
    if _OTHER_WORDS.search(words) and not colors:
        return False
    splits = {split_of(pair.images), split_of(pair.partners)} - {None}
    if len(splits) > 1:
        return False
    return not any(_why_none(file, colors=colors) for file in _first_labels(root, pair, folders))


def _first_labels(root: Path, pair: Pair, folders: Folders) -> list[Path]:
    names = [name for name in folders[pair.images] if pair.has_image(name)][:LOOKS]
    return [root / pair.partners / pair.partner(name) for name in names]


def _is_labels(images: str, partners: str) -> bool:
    """Whether it is rather the first folder that sounds like labels."""
    kinds = (_LABEL_WORDS, _OBJECT_WORDS, _OTHER_WORDS)
    first, second = (any(kind.search(name) for kind in kinds) for name in (images, partners))
    return first and not second


def _why_none(file: Path, *, colors: bool) -> str:
    """Why a file holds no labels of classes; empty if it does."""
    most = MAX_COLORS if colors else MAX_VALUES
    try:
        count = np.unique(read_labels(file, colors=colors)).size
    except DatasetError as error:
        return str(error)
    return "" if count <= most else f"{escape(file)} has {count} values, expected at most {most}"


def _best_splits(labels: Sequence[Pair]) -> Iterator[tuple[Pair, Pair | None]]:
    """Of each data set its train and val."""
    by_set: dict[str, list[Pair]] = {}
    for pair in labels:
        by_set.setdefault(_data_set(pair, labels), []).append(pair)
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


def _data_set(pair: Pair, labels: Sequence[Pair]) -> str:
    """The folder that holds images and labels of all splits, without those inside of another's."""
    tops = {without_split(common_folder(p.images, p.partners)) for p in labels}
    own = without_split(common_folder(pair.images, pair.partners))
    outer = [top for top in tops if top == "." or own == top or own.startswith(f"{top}/")]
    return min(outer, key=len)


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
