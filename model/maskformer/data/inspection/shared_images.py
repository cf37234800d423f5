"""Detection of images that are in both splits, so that a model is scored on training images."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from pathlib import Path

from maskformer.data.datasets.shards import Member
from maskformer.data.image_files.opening import FILE_LIMIT
from maskformer.data.sample import Dataset, evenly_spread
from maskformer.system.reading import open_regular

ImageFile = Path | Member


def shared_images(train: Dataset, val: Dataset, limit: int) -> list[ImageFile]:
    """Return the files of `val` that are also in `train`, with the same name and the same bytes.

    Either of them alone may be a coincidence: frames of two videos have the same names, and empty
    tiles of a map the same bytes.

    Args:
        train, val: the splits.
        limit: the largest number of files with equal names and sizes that are compared.
    """
    known: defaultdict[tuple[str, int], list[ImageFile]] = defaultdict(list)
    names = {file.name for file in image_files(val)}
    for file in image_files(train):
        if file.name in names:
            known[_key(file)].append(file)
    in_train = {name for name, _ in known}
    same = [file for file in image_files(val) if file.name in in_train and _key(file) in known]
    sample = [same[k] for k in evenly_spread(len(same), limit)] if same else []
    return [file for file in sample if any(_equal(file, other) for other in known[_key(file)])]


def image_files(dataset: Dataset) -> list[ImageFile]:
    """Return the image files of a data set, or [] if it is not stored in files."""
    return [files[0] for files in getattr(dataset, "files", ())]


def _key(file: ImageFile) -> tuple[str, int]:
    try:
        return file.name, file.stat().st_size if isinstance(file, Path) else file.size
    except OSError:  # reported when the sample is read
        return file.name, -1


def _read(file: ImageFile) -> bytes:
    with open_regular(file, FILE_LIMIT) if isinstance(file, Path) else file.open() as stream:
        return stream.read()


def _equal(file: ImageFile, other: ImageFile) -> bool:
    try:
        if isinstance(file, Path) and isinstance(other, Path):
            return file.samefile(other) or filecmp.cmp(file, other, shallow=False)
        return _read(file) == _read(other)
    except OSError:
        return False
