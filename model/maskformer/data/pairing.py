"""The images of a folder and the label file of each, by their names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from maskformer.data.image_files.opening import FORMATS
from maskformer.errors import DatasetError
from maskformer.system.listing import Listing, count_names, list_folder
from maskformer.system.text import escape

Image.init()
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS
) | {".npy"}
"""Of files that are images by their name, in lower case."""
ANY = "*"
"""Stands for all of `IMAGE_SUFFIXES`."""


def _nothing(_: str) -> bool:
    return False


class NamedFile(NamedTuple):
    """A file of a folder: its path relative to that, without the suffix and with it."""

    stem: str
    name: str


@dataclass(frozen=True)
class NamedFiles:
    """The files of a folder that have one of some suffixes.

    Attributes:
        folder: where they are.
        files: in the order of their stems, by the stem in Unicode's composed form (NFC): names that
            look the same are the same.
        others: files with none of the suffixes.
        listing: all that is in the folder.
    """

    folder: Path
    files: dict[str, NamedFile]
    others: list[str]
    listing: Listing

    def left_out(self) -> str:
        """What is in the folder and not among the files, and why; empty where there is nothing."""
        return left_out(self.folder, self.listing, self.others)


def left_out(folder: Path, listing: Listing, others: Sequence[str]) -> str:
    """One line that counts what is not taken of a folder; empty where there is nothing.

    Args:
        listing: what the folder holds.
        others: files of other types than those that are taken.
    """
    reasons = listing.left_out()
    if others:
        reasons.append(count_names(others, "of another type"))
    return f"left out of {escape(folder)}: {'; '.join(reasons)}" if reasons else ""


def find_files(
    folder: Path,
    key: str,
    suffixes: Sequence[str],
    suffix_key: str,
    *,
    skip: Callable[[str], bool] = _nothing,
    looked_for: str = "",
) -> NamedFiles:
    """The files of a folder, and below it, that have one of the suffixes, in any case.

    Args:
        folder: walked by the rules of `system.listing`.
        key: the setting that names the folder, such as `data.train.images`.
        suffixes: such as `.jpg` or `_rgb.png`; `"*"` takes every type of image.
        suffix_key: the setting that they come from.
        skip: tells the names that are something else.
        looked_for: an example of what should be there, for the message.

    Raises:
        DatasetError: the folder cannot be read, it has no such file, or two that differ only in the
            suffix, its case, or the form of Unicode.
    """
    listing = list_folder(folder)
    endings = IMAGE_SUFFIXES if ANY in suffixes else {suffix.lower() for suffix in suffixes}
    found, others = [], []
    for name in listing.files:
        lengths = [len(end) for end in endings if name.lower().endswith(end)]
        if lengths and not skip(name):
            found.append(NamedFile(name[: -max(lengths)], name))
        elif not lengths:
            others.append(name)
    if not found:
        message = _nothing_found(folder, key, suffixes, suffix_key, listing)
        raise DatasetError(message + (f" (looked for {escape(looked_for)})" if looked_for else ""))
    files: dict[str, NamedFile] = {}
    for file in sorted(found):
        same = files.setdefault(unicodedata.normalize("NFC", file.stem), file)
        if same is not file:
            raise DatasetError(
                f"{key}: {escape(same.name)} and {escape(file.name)} in {escape(folder)} share one "
                "name, so that it is open which of them a label belongs to: remove or rename one, "
                f"or let {suffix_key} say which type counts"
            )
    return NamedFiles(folder, files, others, listing)


def labels_among(images: Path, labels: Path, label_suffix: str) -> Callable[[str], bool]:
    """Tells the label files among the names of a folder of images, which may be theirs too, or
    hold it.
    """
    inside = os.path.relpath(os.path.realpath(labels), os.path.realpath(images))
    if inside.partition("/")[0] == "..":
        return _nothing
    start, end = "" if inside == "." else f"{inside}/", label_suffix.lower()
    return lambda name: name.startswith(start) and name.lower().endswith(end)


@dataclass(frozen=True)
class Pair:
    """An image and what belongs to it.

    Attributes:
        name: of the image, below its folder and without suffix.
        image, labels: the files.
        objects: the file that numbers its objects, if there is one.
    """

    name: str
    image: Path
    labels: Path
    objects: Path | None = None


class Pairs(NamedTuple):
    """Images and their label files.

    Attributes:
        pairs: in the order of their names.
        notes: a line per folder of what is there and was not taken, and why.
    """

    pairs: list[Pair]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PairRules:
    """Which names belong together.

    Attributes:
        split: `train` or `val`, for the messages.
        image_suffixes: as `find_files` takes them.
        label_suffix: replaces the suffix of an image, to name its labels and objects.
        skip: tells the names that are not wanted, by the whole name.
        select: of the images that were found, those that are wanted.
    """

    split: str
    image_suffixes: Sequence[str]
    label_suffix: str
    skip: Callable[[str], bool] = _nothing
    select: Callable[[NamedFiles], dict[str, NamedFile]] = lambda found: found.files


def pair_files(images: Path, labels: Path, rules: PairRules, objects: Path | None = None) -> Pairs:
    """The images of a folder with the label files of the same names, and files of objects.

    Raises:
        DatasetError: as `find_files` does, or images that lack their label file.
    """
    is_label: Callable[[str], bool] = _nothing
    if ANY in rules.image_suffixes:
        is_label = labels_among(images, labels, rules.label_suffix)
    found = find_files(
        images,
        f"data.{rules.split}.images",
        rules.image_suffixes,
        "data.image_suffix",
        skip=lambda name: is_label(name) or rules.skip(name),
    )
    wanted = rules.select(found)
    label_of, notes = _match(found, wanted, labels, "labels", rules)
    object_of: dict[str, Path] = {}
    if objects is not None:
        object_of, more = _match(found, wanted, objects, "objects", rules)
        notes += more
    if len(wanted) < len(found.files):
        left = len(found.files) - len(wanted)
        notes.insert(0, f"left out of {escape(images)}: {left:,} that the list does not name")
    pairs = [
        Pair(image.stem, images / image.name, label_of[stem], object_of.get(stem))
        for stem, image in wanted.items()
    ]
    return Pairs(pairs, tuple(filter(None, [found.left_out(), *notes])))


def _match(
    found: NamedFiles, wanted: dict[str, NamedFile], folder: Path, key: str, rules: PairRules
) -> tuple[dict[str, Path], list[str]]:
    """The file of each wanted image in the folder of `labels` or of `objects`, and notes."""
    suffix = rules.label_suffix
    first = next(iter(found.files.values())).stem + suffix
    present = find_files(
        folder, f"data.{rules.split}.{key}", [suffix], "data.label_suffix", looked_for=first
    )
    files = {stem: _label_of(stem, image, present, suffix) for stem, image in wanted.items()}
    missing = [wanted[stem] for stem, file in files.items() if file is None]
    if missing:
        kind = "label file" if key == "labels" else "file of objects"
        raise DatasetError(
            f"{rules.split}: {len(missing)} of {len(wanted)} images have no {kind}; first: "
            f"{escape(found.folder / missing[0].name)}, expected "
            f"{escape(folder / (missing[0].stem + suffix))}; add the "
            f"{'label files' if key == 'labels' else 'files'}, remove the images, or let "
            "data.image_suffix say which type is an image"
        )
    notes = [present.left_out()]
    unused = [file.name for stem, file in present.files.items() if stem not in found.files]
    if unused:
        notes.append(f"left out of {escape(folder)}: {count_names(unused, 'without an image')}")
    return {stem: file for stem, file in files.items() if file is not None}, notes


def _label_of(stem: str, image: NamedFile, labels: NamedFiles, label_suffix: str) -> Path | None:
    if stem in labels.files:
        return labels.folder / labels.files[stem].name
    # Each folder is listed under one name; a link may give it another.
    other = labels.folder / (image.stem + label_suffix)
    return other if os.path.lexists(other) else None


def _nothing_found(
    folder: Path, key: str, suffixes: Sequence[str], suffix_key: str, found: Listing
) -> str:
    if not found.files:
        others = ", ".join(found.left_out())
        what = f"holds nothing but {others}" if others else "is empty"
        return f"{escape(folder)} {what}; set {key} to the folder that holds the files"
    counts = Counter(escape(Path(name).suffix) or "no suffix" for name in found.files)
    listing = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(4))
    wanted = ", ".join(f"'{suffix}'" for suffix in suffixes)
    return f"{escape(folder)} has no file that fits {suffix_key} {wanted}; it holds {listing}"
