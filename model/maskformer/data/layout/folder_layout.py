"""Detection of images with one label file each: their folders, splits and label values."""

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
"""Files with more values than this are not class labels, but object numbers or pictures."""
MAX_COLORS = 64
"""Files with more colours than this are not colour-coded labels, but pictures."""
LOOKS = 3
READ = 200
_LABEL_WORDS = re.compile("label|mask|annot|gt|seg|class", re.IGNORECASE)
_OBJECT_WORDS = re.compile("object|instance", re.IGNORECASE)
_OTHER_WORDS = re.compile("visual|color|colour|overlay|preview|poly", re.IGNORECASE)


@dataclass(frozen=True)
class FolderLayout:
    """Images and labels that `format: folder` reads.

    Attributes:
        train, val: the folders of each split; if `val` is None, validation images are taken from
            `train`.
        objects: the folder of object numbers for each split, if there is one.
        lists: the text files that list the images of train and of val.
        values: the raw values found in label files, sorted.
        read: the number of label files that were read.
        colors: whether the values are colours, as `read_labels` returns them.
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
    """Find the data sets below a folder that consist of images with label files; return the best
    layout of each.

    Args:
        root: the folder.
        folders: its image folders.
        found: the `pairs` of these folders.
        files: all files below the root.
        colors: search for label files whose colours are the classes.

    Raises:
        DatasetError: label files cannot be read.
    """
    named = [pair for pair in found if _may_hold_labels(pair, colors=colors)]
    # If many folders have the same names, each file is in many pairs.
    why_not_labels = cache(partial(_why_not_labels, root, colors=colors))
    labels = [
        pair
        for pair in track(named, len(named), "Looking for labels")
        if not any(map(why_not_labels, _first_labels(pair, folders)))
    ]
    return [
        _describe(root, train, val, found, folders, files, colors=colors)
        for train, val in _best_splits(_nearest(labels))
    ]


def rejected_labels(root: Path, folders: Folders, found: Sequence[Pair]) -> str:
    """Return why the first files that are named like labels are none, or "" if there are none."""
    for pair in found:
        words = (f"{pair.images}/{pair.image_suffix}", f"{pair.partners}/{pair.partner_suffix}")
        if [bool(_LABEL_WORDS.search(name)) for name in words] == [False, True]:
            names = _first_labels(pair, folders)
            reasons = (_why_not_labels(root, name, colors=False) for name in names)
            return next(filter(None, reasons), "")
    return ""


def _nearest(labels: Sequence[Pair]) -> list[Pair]:
    """If several folders have labels for the same images, or images for the same labels, keep those
    whose common parent is the deepest.
    """
    nearest = list(labels)
    for key in (attrgetter("images"), attrgetter("partners")):
        depth = {pair: _depth(common_folder(pair.images, pair.partners)) for pair in nearest}
        deepest: dict[str, int] = {}
        for pair in nearest:
            deepest[key(pair)] = max(deepest.get(key(pair), 0), depth[pair])
        nearest = [pair for pair in nearest if depth[pair] == deepest[key(pair)]]
    return nearest


def _depth(folder: str) -> int:
    return len(PurePosixPath(folder).parts)


def _may_hold_labels(pair: Pair, *, colors: bool) -> bool:
    """Whether, by their names, the partners are label files of classes and the images are not."""
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
    """Whether the name of the first folder suggests labels, but that of the second does not."""
    kinds = (_LABEL_WORDS, _OBJECT_WORDS, _OTHER_WORDS)
    first, second = (any(kind.search(name) for kind in kinds) for name in (images, partners))
    return first and not second


def _why_not_labels(root: Path, name: str, *, colors: bool) -> str:
    """Return why a file is not a label file of classes, or "" if it is."""
    file = root / name
    limit = MAX_COLORS if colors else MAX_VALUES
    try:
        count = np.unique(read_labels(file, colors=colors)).size
    except DatasetError as error:
        return str(error)
    return "" if count <= limit else f"{escape(file)} has {count} values, expected at most {limit}"


def _best_splits(labels: Sequence[Pair]) -> Iterator[tuple[Pair, Pair | None]]:
    """Yield the train and val folders of each data set."""
    by_set: dict[str, list[Pair]] = {}
    tops = {_parent_of_splits(pair) for pair in labels}
    for pair in labels:
        by_set.setdefault(_data_set(_parent_of_splits(pair), tops), []).append(pair)
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


def _parent_of_splits(pair: Pair) -> str:
    """Return the folder that contains the images and labels of all splits."""
    return without_split(common_folder(pair.images, pair.partners))


def _data_set(folder: str, tops: Iterable[str]) -> str:
    """Return the outermost one of several folders that contains a folder."""
    return min(
        (top for top in tops if top == "." or folder == top or folder.startswith(f"{top}/")),
        key=len,
    )


def common_folder(first: str, second: str) -> str:
    """Return the innermost folder that contains both."""
    return os.path.commonpath([first, second]) or "."


def _rank(pair: Pair) -> tuple[bool, int, int]:
    """Return a sort key that prefers folders named like labels, then more images, then depth."""
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
    """Return the folder with object numbers whose files have the names of the label files."""
    for other in found:
        same = (other.images, other.image_suffix, other.partner_suffix)
        if same == (pair.images, pair.image_suffix, pair.partner_suffix) and _OBJECT_WORDS.search(
            other.partners
        ):
            return other.partners
    return None


def _lists(pair: Pair, files: Sequence[str]) -> tuple[str, str] | None:
    """Return the text files next to the folders that list train and val, as VOC's `ImageSets`."""
    top = common_folder(pair.images, pair.partners)
    for folder in ("ImageSets/Segmentation", "ImageSets", "splits", "."):
        lists = PurePosixPath(top) / folder
        names = [(lists / f"{split}.txt").as_posix() for split in ("train", "val")]
        if all(name in files for name in names):
            return names[0], names[1]
    return None
