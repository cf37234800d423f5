"""Pairing of the images in a folder with their label files, by name."""

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
"""The suffixes of image files, in lower case."""
ANY = "*"
"""As a suffix, it stands for all of `IMAGE_SUFFIXES`."""


def _nothing(_: str) -> bool:
    return False


class NamedFile(NamedTuple):
    """The path of a file relative to its folder, without and with the suffix."""

    stem: str
    name: str


@dataclass(frozen=True)
class NamedFiles:
    """The files of a folder that have one of several suffixes.

    Attributes:
        folder: the folder.
        files: the files by stem, sorted. Stems are in Unicode's composed form (NFC), so that names
            that look the same are equal.
        others: the files with other suffixes.
        listing: the complete contents of the folder.
    """

    folder: Path
    files: dict[str, NamedFile]
    others: list[str]
    listing: Listing

    def describe_skipped(self) -> str:
        """Describe the skipped files of the folder and why they were skipped, or ""."""
        return describe_skipped(self.folder, self.listing, self.others)


def describe_skipped(folder: Path, listing: Listing, others: Sequence[str]) -> str:
    """Describe in one line how many entries of a folder were skipped, and why, or return "".

    Args:
        folder: the folder.
        listing: its contents.
        others: the files in it whose type is not used.
    """
    reasons = listing.skipped()
    if others:
        reasons.append(count_names(others, "of another type"))
    return f"skipped in {escape(folder)}: {'; '.join(reasons)}" if reasons else ""


def find_files(
    folder: Path,
    key: str,
    suffixes: Sequence[str],
    suffix_key: str,
    *,
    skip: Callable[[str], bool] = _nothing,
    example: str = "",
) -> NamedFiles:
    """Find the files in and below a folder that have one of the suffixes, ignoring case.

    Args:
        folder: the folder, which is listed by the rules of `system.listing`.
        key: the setting that names the folder, such as `data.train.images`.
        suffixes: suffixes such as `.jpg` or `_rgb.png`; `"*"` means every type of image.
        suffix_key: the setting that the suffixes come from.
        skip: returns True for the names to ignore.
        example: a file name that was expected, for the message.

    Raises:
        DatasetError: the folder cannot be read, it has no such file, or two files differ only in
            the suffix, in upper and lower case, or in the form of Unicode.
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
        raise DatasetError(
            message + (f" (expected, for example, {escape(example)})" if example else "")
        )
    files: dict[str, NamedFile] = {}
    for file in sorted(found):
        same = files.setdefault(unicodedata.normalize("NFC", file.stem), file)
        if same is not file:
            raise DatasetError(
                f"{key}: {escape(same.name)} and {escape(file.name)} in {escape(folder)} share one "
                "name, so it is ambiguous which of them a label belongs to: remove or rename one, "
                f"or set {suffix_key} to the type to use"
            )
    return NamedFiles(folder, files, others, listing)


def labels_among(images: Path, labels: Path, label_suffix: str) -> Callable[[str], bool]:
    """Return a function that tells which names in the folder of images are label files. There are
    some if both folders are the same, or if that of the labels is inside that of the images.
    """
    inside = os.path.relpath(os.path.realpath(labels), os.path.realpath(images))
    if inside.partition("/")[0] == "..":
        return _nothing
    start, end = "" if inside == "." else f"{inside}/", label_suffix.lower()
    return lambda name: name.startswith(start) and name.lower().endswith(end)


@dataclass(frozen=True)
class Pair:
    """An image and its label files.

    Attributes:
        name: the path of the image relative to its folder, without suffix.
        image, labels: the files.
        objects: the file with the object number of each pixel, if there is one.
    """

    name: str
    image: Path
    labels: Path
    objects: Path | None = None


class Pairs(NamedTuple):
    """Images and their label files.

    Attributes:
        pairs: the pairs, sorted by name.
        notes: a line per folder on the skipped files and why they were skipped.
    """

    pairs: list[Pair]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PairRules:
    """The rules by which images and label files are paired.

    Attributes:
        split: `train` or `val`, for messages.
        image_suffixes: the suffixes of images, as in `find_files`.
        label_suffix: replaces the suffix of an image to get the name of its label files.
        skip: returns True for the names of images to ignore.
        select: returns the images to use of those that were found.
    """

    split: str
    image_suffixes: Sequence[str]
    label_suffix: str
    skip: Callable[[str], bool] = _nothing
    select: Callable[[NamedFiles], dict[str, NamedFile]] = lambda found: found.files


def pair_files(images: Path, labels: Path, rules: PairRules, objects: Path | None = None) -> Pairs:
    """Pair the images of a folder with the label files, and with the object files, of the same
    names.

    Raises:
        DatasetError: as `find_files`, or images have no label file.
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
        notes.insert(0, f"skipped in {escape(images)}: {left:,} that are not in the list")
    pairs = [
        Pair(image.stem, images / image.name, label_of[stem], object_of.get(stem))
        for stem, image in wanted.items()
    ]
    return Pairs(pairs, tuple(filter(None, [found.describe_skipped(), *notes])))


def _match(
    found: NamedFiles, wanted: dict[str, NamedFile], folder: Path, key: str, rules: PairRules
) -> tuple[dict[str, Path], list[str]]:
    """Find the label file (or object file) of each wanted image; also return notes."""
    suffix = rules.label_suffix
    first = next(iter(found.files.values())).stem + suffix
    present = find_files(
        folder, f"data.{rules.split}.{key}", [suffix], "data.label_suffix", example=first
    )
    files = {stem: _label_of(stem, image, present, suffix) for stem, image in wanted.items()}
    missing = [wanted[stem] for stem, file in files.items() if file is None]
    if missing:
        kind = "label file" if key == "labels" else "object file"
        raise DatasetError(
            f"{rules.split}: {len(missing)} of {len(wanted)} images have no {kind}; first: "
            f"{escape(found.folder / missing[0].name)}, expected "
            f"{escape(folder / (missing[0].stem + suffix))}; add the "
            f"{'label files' if key == 'labels' else 'files'}, remove the images, or set "
            "data.image_suffix to the type of the images"
        )
    notes = [present.describe_skipped()]
    unused = [file.name for stem, file in present.files.items() if stem not in found.files]
    if unused:
        notes.append(f"skipped in {escape(folder)}: {count_names(unused, 'without an image')}")
    return {stem: file for stem, file in files.items() if file is not None}, notes


def _label_of(stem: str, image: NamedFile, labels: NamedFiles, label_suffix: str) -> Path | None:
    if stem in labels.files:
        return labels.folder / labels.files[stem].name
    # A folder reached through several links is listed under one of its names only.
    other = labels.folder / (image.stem + label_suffix)
    return other if os.path.lexists(other) else None


def _nothing_found(
    folder: Path, key: str, suffixes: Sequence[str], suffix_key: str, found: Listing
) -> str:
    if not found.files:
        others = ", ".join(found.skipped())
        what = f"holds nothing but {others}" if others else "is empty"
        return f"{escape(folder)} {what}; set {key} to the folder that contains the files"
    counts = Counter(escape(Path(name).suffix) or "no suffix" for name in found.files)
    listing = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(4))
    wanted = ", ".join(f"'{suffix}'" for suffix in suffixes)
    return f"{escape(folder)} has no file that matches {suffix_key} {wanted}; it holds {listing}"
