"""Which images of a folder make a split, and the label file of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from maskformer.config.schema import ANY, FolderConfig, FolderSplit
from maskformer.data.loaders import derive_seed
from maskformer.data.sample import Split
from maskformer.errors import DatasetError
from maskformer.system.listing import list_files
from maskformer.system.reading import read_lines

T = TypeVar("T")

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"),
    *(".avif", ".jp2", ".qoi", ".tga"),
)
"""Of the formats that `maskformer.data.images` reads."""


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


def folders_of(config: FolderConfig, split: Split) -> FolderSplit:
    """The folders of a split; where `val` is a share of `train`, those of `train`."""
    return config.val if split == "val" and isinstance(config.val, FolderSplit) else config.train


def pair_files(config: FolderConfig, split: Split) -> list[Pair]:
    """The images of a split with their label files, sorted by name.

    Raises:
        DatasetError: a folder is missing or empty, an image lacks its label file or shares it with
            another, or a list names images that are not there.
    """
    if isinstance(config.val, float):
        pairs = _pairs_of(config, "train")
        return take_share(pairs, config.val, config.seed, split, lambda pair: pair.name)
    return _pairs_of(config, split)


def take_share(
    items: Sequence[T], share: float, seed: int, split: Split, name: Callable[[T], str]
) -> list[T]:
    """One of two splits of a set, in its order. Names decide, so that neither the order of files
    nor further ones move many between the splits; at least one is in each.

    Args:
        items: the whole set.
        share: what `val` gets of it, in 0..1.
        seed: of the choice.
        name: what an item is called.

    Raises:
        DatasetError: there are fewer than two.
    """
    if len(items) < 2:
        raise DatasetError(
            f"data.val: {share} of {len(items)} images leaves a split empty; name a split of its "
            "own"
        )
    draw = sorted(range(len(items)), key=lambda k: derive_seed(seed, "split", name(items[k])))
    taken = {*draw[: min(max(round(share * len(items)), 1), len(items) - 1)]}
    return [item for k, item in enumerate(items) if (k in taken) == (split == "val")]


def _pairs_of(config: FolderConfig, split: Split) -> list[Pair]:
    folders = folders_of(config, split)
    for key in ("images", "labels", "objects"):
        inner = getattr(folders, key)
        if inner is not None and not (config.root / inner).is_dir():
            raise DatasetError(
                f"{split} {key}: there is no folder {config.root / inner}; set data.root or "
                f"data.{split}.{key}"
            )
    images = _find_images(config, split)
    labels = _match(config, split, images, "labels")
    objects: Sequence[Path | None] = [None] * len(images)
    if folders.objects is not None:
        objects = _match(config, split, images, "objects")
    folder = config.root / folders.images
    return [
        Pair(name, folder / image, label, one)
        for (name, image), label, one in zip(images.items(), labels, objects, strict=True)
    ]


def _find_images(config: FolderConfig, split: Split) -> dict[str, str]:
    """The files of the images by name, sorted."""
    folders = folders_of(config, split)
    folder = config.root / folders.images
    found = _exclude(list_files(folder), folders.exclude, f"data.{split}.exclude")
    suffixes = _suffixes(config, folders)
    images = _by_stem(found, suffixes, folder)
    if not images:
        raise DatasetError(
            _nothing_found(folder, f"data.{split}.images", "image_suffix", suffixes, found)
        )
    if folders.list is not None:
        return _pick(images, config.root / folders.list, f"data.{split}.list", folders)
    if folders.images != folders.labels:
        _check_left_out(images, found, config, split)
    return images


def _suffixes(config: FolderConfig, folders: FolderSplit) -> tuple[str, ...]:
    if ANY not in config.image_suffix:
        return tuple(suffix.lower() for suffix in config.image_suffix)
    if folders.images != folders.labels:
        return IMAGE_SUFFIXES
    return tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != config.label_suffix.lower())


def _by_stem(found: Iterable[str], suffixes: Sequence[str], folder: Path) -> dict[str, str]:
    """The files with one of the suffixes, in any case, by their name without it."""
    images: dict[str, str] = {}
    for name in found:
        fitting = [len(suffix) for suffix in suffixes if name.lower().endswith(suffix)]
        if not fitting:
            continue
        stem = name[: len(name) - max(fitting)]
        if images.setdefault(stem, name) != name:
            raise DatasetError(
                f"{folder} holds {images[stem]} and {name}, which share a name and so a label "
                "file; remove one of them, or set data.image_suffix to the suffix that is meant"
            )
    return dict(sorted(images.items()))


def _check_left_out(
    images: Container[str], found: Iterable[str], config: FolderConfig, split: Split
) -> None:
    """Refuses to pass over images of other suffixes that have labels."""
    paths = [Path(name) for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    others = [path for path in paths if path.with_suffix("").as_posix() not in images]
    if not others:
        return
    labels = list_files(config.root / folders_of(config, split).labels)
    labelled = {Path(name).with_suffix("") for name in labels}
    lost = [path for path in others if path.with_suffix("") in labelled]
    if lost:
        suffixes = config.image_suffix
        wanted = dict.fromkeys([*suffixes, *sorted({path.suffix.lower() for path in lost})])
        raise DatasetError(
            f"{split}: {len(lost)} images that have a label file do not have the suffix "
            f"{' or '.join(suffixes)}, first {lost[0]}; set data.image_suffix: "
            f"[{', '.join(wanted)}], or data.{split}.exclude to leave them out"
        )


def _pick(images: dict[str, str], file: Path, key: str, folders: FolderSplit) -> dict[str, str]:
    """The images that a list names, in any order: the whole line, or else its first word."""
    try:
        lines = read_lines(file)
    except FileNotFoundError:
        raise DatasetError(f"{key}: there is no file {file}; set data.root or {key}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{key}: {file} cannot be read: {error}") from None
    stems = {
        normalize("NFC", name): stem
        for stem, full in images.items()
        for name in (stem, full, f"{folders.images}/{full}")
    }
    wanted = [normalize("NFC", line).lstrip("/") for line in lines]
    wanted = [line if line in stems else line.split()[0] for line in wanted]
    missing = [name for name in wanted if name not in stems]
    if not wanted:
        raise DatasetError(f"{key}: {file} lists no image, expected one name per line")
    if missing:
        raise DatasetError(
            f"{key}: {len(missing)} of {len(wanted)} names in {file}, first {missing[0]}, are not "
            f"in {folders.images}; expected names below that folder, with or without suffix"
        )
    picked = {stems[name] for name in wanted}
    return {stem: name for stem, name in images.items() if stem in picked}


def _exclude(found: list[str], patterns: Sequence[str], key: str) -> list[str]:
    for pattern in patterns:
        kept = [
            name
            for name in found
            if not any(fnmatchcase(part, pattern) for part in (name, name.rpartition("/")[2]))
        ]
        if not kept or len(kept) == len(found):
            raise DatasetError(
                f"{key}: the pattern '{pattern}' fits {'no' if kept else 'every'} file; patterns "
                "such as '*_old.jpg' or 'day2/*' are compared with names below the images' folder"
            )
        found = kept
    return found


def _match(config: FolderConfig, split: Split, images: dict[str, str], key: str) -> list[Path]:
    """The file of each image in the folder of `labels` or of `objects`."""
    folders = folders_of(config, split)
    folder, suffix = config.root / getattr(folders, key), config.label_suffix
    present = list_files(folder)
    listed = {*present}
    # Where only the case of the suffix differs, or the form of accents, the file is meant.
    nearly = {_loose(name, suffix): name for name in present}
    names = [stem + suffix for stem in images]
    names = [n if n in listed else nearly.get(_loose(n, suffix), n) for n in names]
    # Each folder is listed under one name; a link may give it another.
    missing = [n for n in names if n not in listed and not os.path.lexists(folder / n)]
    if len(missing) == len(names):
        raise DatasetError(
            _nothing_found(folder, f"data.{split}.{key}", "label_suffix", (suffix,), present)
            + f" (looked for {missing[0]})"
        )
    if missing:
        image = images[missing[0].removesuffix(suffix)]
        kind = "label file" if key == "labels" else "file of objects"
        raise DatasetError(
            f"{split}: {len(missing)} of {len(names)} images have no {kind}; first: "
            f"{config.root / folders.images / image}, expected {folder / missing[0]}; add the "
            f"{'label files' if key == 'labels' else 'files'} or remove the images"
        )
    return [folder / name for name in names]


def _loose(name: str, suffix: str) -> str:
    if suffix and name.lower().endswith(suffix.lower()):
        name = name[: -len(suffix)] + suffix.lower()
    return normalize("NFC", name)


def _nothing_found(
    folder: Path, key: str, suffix_key: str, suffixes: Sequence[str], found: Sequence[str]
) -> str:
    if not found:
        return f"{folder} is empty; set {key} to the folder that holds the files"
    held = Counter(Path(name).suffix or "no suffix" for name in found)
    listing = ", ".join(f"{count} {name}" for name, count in held.most_common(4))
    wanted = " or ".join(f"'{suffix}'" for suffix in suffixes)
    return f"{folder} has no file that fits data.{suffix_key} {wanted}; it holds {listing}"
