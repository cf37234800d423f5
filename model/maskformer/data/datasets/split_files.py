"""The images of a folder that form a split, with their label files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from maskformer.config.schema import FolderConfig, FolderSplit
from maskformer.data.loaders import derive_seed
from maskformer.data.pairing import NamedFile, NamedFiles, PairRules, Pairs, pair_files
from maskformer.data.sample import Split
from maskformer.errors import DatasetError
from maskformer.system.listing import list_files, why_absent
from maskformer.system.reading import read_lines
from maskformer.system.text import counted, escape

T = TypeVar("T")


def folders_of(config: FolderConfig, split: Split) -> FolderSplit:
    """Return the folders of a split; if `val` is a fraction of `train`, those of `train`."""
    return config.val if split == "val" and isinstance(config.val, FolderSplit) else config.train


def split_files(config: FolderConfig, split: Split) -> Pairs:
    """Return the images of a split with their label files, sorted by name.

    Raises:
        DatasetError: a folder is missing or empty, an image has no label file or shares it with
            another image, or a list names images that do not exist.
    """
    if isinstance(config.val, float):
        pairs, notes = _pairs_of(config, "train")
        taken = take_share(pairs, config.val, config.seed, split, lambda pair: pair.name)
        return Pairs(taken, notes)
    return _pairs_of(config, split)


def take_share(
    items: Sequence[T], share: float, seed: int, split: Split, name: Callable[[T], str]
) -> list[T]:
    """Divide a set at random, and return the items of one split in their order.

    The choice depends on the names, so that few items move to the other split if the order changes
    or items are added. Each split has at least one item.

    Args:
        items: the whole set.
        share: the fraction that `val` gets, in 0..1.
        seed: the seed of the choice.
        split: the split to return.
        name: returns the name of an item.

    Raises:
        DatasetError: there are fewer than two items.
    """
    if len(items) < 2:
        raise DatasetError(
            f"data.val: {share} of {counted(len(items), 'image')} leaves a split empty; set "
            "data.val to separate validation data"
        )
    draw = sorted(range(len(items)), key=lambda k: derive_seed(seed, "split", name(items[k])))
    taken = {*draw[: min(max(round(share * len(items)), 1), len(items) - 1)]}
    return [item for k, item in enumerate(items) if (k in taken) == (split == "val")]


def _pairs_of(config: FolderConfig, split: Split) -> Pairs:
    folders = folders_of(config, split)
    for key in ("images", "labels", "objects"):
        inner = getattr(folders, key)
        if inner is not None and not (config.root / inner).is_dir():
            raise DatasetError(
                f"{split} {key}: there is no folder {config.root / inner}; set data.root or "
                f"data.{split}.{key} ({why_absent(config.root / inner)})"
            )
    images = config.root / folders.images
    if folders.exclude:
        _check_patterns(list_files(images), folders.exclude, f"data.{split}.exclude")
    rules = PairRules(
        split,
        config.image_suffix,
        config.label_suffix,
        skip=lambda name: any(_matches(name, pattern) for pattern in folders.exclude),
        select=lambda found: _select(found, config.root, folders, f"data.{split}.list"),
    )
    objects = None if folders.objects is None else config.root / folders.objects
    return pair_files(images, config.root / folders.labels, rules, objects)


def _select(found: NamedFiles, root: Path, folders: FolderSplit, key: str) -> dict[str, NamedFile]:
    """Return the images that a list file names, one per line: by the whole line if that is the name
    of an image, otherwise by its first word.
    """
    if folders.list is None:
        return found.files
    file = root / folders.list
    try:
        lines = read_lines(file)
    except FileNotFoundError:
        raise DatasetError(f"{key}: there is no file {file}; set data.root or {key}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{key}: {file} cannot be read: {error}") from None
    stems = {
        normalize("NFC", name): stem
        for stem, image in found.files.items()
        for name in (image.stem, image.name, f"{folders.images}/{image.name}")
    }
    wanted = [normalize("NFC", line).lstrip("/") for line in lines]
    wanted = [line if line in stems else line.split()[0] for line in wanted]
    missing = [name for name in wanted if name not in stems]
    if not wanted:
        raise DatasetError(f"{key}: {file} lists no images, expected one name per line")
    if missing:
        raise DatasetError(
            f"{key}: {len(missing)} of {len(wanted)} names in {file}, first "
            f"{escape(missing[0])}, are not in {folders.images}; expected names relative to that "
            "folder, with or without suffix"
        )
    picked = {stems[name] for name in wanted}
    return {stem: image for stem, image in found.files.items() if stem in picked}


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in (name, name.rpartition("/")[2]))


def _check_patterns(names: Sequence[str], patterns: Sequence[str], key: str) -> None:
    for pattern in patterns:
        count = sum(_matches(name, pattern) for name in names)
        if count in (0, len(names)):
            raise DatasetError(
                f"{key}: the pattern '{pattern}' matches {'every' if count else 'no'} file; "
                "patterns such as '*_old.jpg' or 'day2/*' are compared with the names relative to "
                "the folder of the images"
            )
