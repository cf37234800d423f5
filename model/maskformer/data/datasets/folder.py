"""Semantic data sets on disk: a folder of images, a folder of label files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.config.schema import FolderConfig, FolderSplit
from maskformer.data.datasets.label_values import explain_label_values
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.images import check_same_size, read_labels
from maskformer.data.pairing import Pairs, pair_files
from maskformer.data.palette import palette
from maskformer.data.progress import track
from maskformer.data.sample import DatasetInfo, Sample, Split, check_index
from maskformer.errors import DatasetError, LabelValueError
from maskformer.system.reading import TEXT_LIMIT, read_regular

LARGEST_VALUE = 2**16 - 1


class Folder:
    """Images and label files that share their relative names, one raw value per class.

    Each sample has one segment per class present, in the order of the classes.

    Args:
        config: where the files are and how values become classes.
        split: which pair of folders.

    Attributes:
        notes: a line per folder of what is there and was not taken, and why.

    Raises:
        DatasetError: a folder is missing or empty, images lack their label file, or no classes are
            found.
    """

    def __init__(self, config: FolderConfig, split: Split) -> None:
        self.config = config
        self._reader = ImageReader.from_config(config)
        self.files, self._names, self.notes = _pair_files(config, split)
        names = _class_names(config)
        if names is None:
            train = self.files if split == "train" else _pair_files(config, "train").files
            names = _number_classes(config, [label for _, label in train])
        self.info = _info(names, config)
        self._images = config.root / _folders(config, split).images
        self._table = _class_table(config, len(names))

    @property
    def num_images(self) -> int:
        return len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        index = check_index(index, len(self.files))
        image_file, label_file = self.files[index]
        image, frame = self._reader.read(image_file)
        values = read_labels(label_file, frame, self.config.max_pixels)
        check_same_size(image, image_file, values, label_file)
        classes, segments = self._to_segments(values, label_file)
        return Sample(
            image=image,
            segments=torch.from_numpy(segments),
            labels=torch.from_numpy(classes),
            crowd=torch.zeros(len(classes), dtype=torch.bool),
            name=self._names[index],
            file_name=image_file.relative_to(self._images).as_posix(),
        )

    def explain(self, errors: Sequence[LabelValueError]) -> str:
        """One message for label values outside the classes, gathered from several files."""
        return explain_label_values(errors, self.config, self.info.num_classes)

    def _to_segments(
        self, values: NDArray[np.integer], file: Path
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Classes present, ascending, and the map that indexes them, -1 for void."""
        present, counts = _count_values(values)
        known = (present >= 0) & (present <= LARGEST_VALUE)
        classes_of = np.where(known, self._table[present.clip(0, LARGEST_VALUE)], _OUTSIDE)
        bad = classes_of == _OUTSIDE
        if bad.any():
            error = LabelValueError(
                "",
                str(file),
                dict(zip(present[bad].tolist(), counts[bad].tolist(), strict=True)),
                tuple(present.tolist()),
            )
            raise LabelValueError(self.explain([error]), error.file, error.values, error.found)
        classes = np.unique(classes_of[classes_of >= 0])
        to_segment = np.full(LARGEST_VALUE + 1, -1, np.int32)
        to_segment[present] = np.where(classes_of >= 0, np.searchsorted(classes, classes_of), -1)
        return classes, to_segment[values]


_OUTSIDE = -2


def _class_table(config: FolderConfig, num_classes: int) -> NDArray[np.int64]:
    """The class of each raw value: -1 for void, -2 for no class of the list."""
    table = np.arange(LARGEST_VALUE + 1, dtype=np.int64) - config.label_offset
    table[(table < 0) | (table >= num_classes)] = _OUTSIDE
    table[[value for value in config.ignore if 0 <= value <= LARGEST_VALUE]] = -1
    return table


def _count_values(values: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values present and their pixels."""
    if values.size and int(values.min()) >= 0 and int(values.max()) <= LARGEST_VALUE:
        counts = np.bincount(values.ravel())
        present = counts.nonzero()[0]
        return present, counts[present]
    present, counts = np.unique(values, return_counts=True)
    return present.astype(np.int64), counts


def _pair_files(config: FolderConfig, split: Split) -> Pairs:
    folders = _folders(config, split)
    images, labels = config.root / folders.images, config.root / folders.labels
    for folder, key in ((images, "images"), (labels, "labels")):
        if not folder.is_dir():
            raise DatasetError(
                f"{split} {key}: there is no folder {folder}; set data.root or data.{split}.{key}"
            )
    return pair_files(images, labels, split, [config.image_suffix], config.label_suffix)


def _folders(config: FolderConfig, split: Split) -> FolderSplit:
    return config.train if split == "train" else config.val


def _class_names(config: FolderConfig) -> tuple[str, ...] | None:
    if not isinstance(config.classes, Path):
        return config.classes
    candidates = [config.root / config.classes, CONFIG_FOLDER / config.classes]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise DatasetError(
            f"data.classes: there is no file {candidates[0]}"
            + ("" if config.classes.is_absolute() else f" or {candidates[1]}")
        )
    try:
        text = read_regular(file, TEXT_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"data.classes: {file} cannot be read ({error}), expected UTF-8 text, one class name "
            "per line"
        ) from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise DatasetError(f"data.classes: {file} is empty, expected one class name per line")
    return names


def _number_classes(config: FolderConfig, label_files: Sequence[Path]) -> tuple[str, ...]:
    """Names the classes by number, up to the largest value that any training label has."""

    def largest(file: Path) -> int:
        present, _ = _count_values(read_labels(file))
        return max(set(present.tolist()) - set(config.ignore), default=config.label_offset - 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        scan = track(pool.map(largest, label_files), len(label_files), "Counting classes")
        top = max(scan) - config.label_offset
    folder = config.root / config.train.labels
    if top < 0:
        raise DatasetError(
            f"no class found in {len(label_files)} label files under {folder}: every value is "
            f"ignored or below data.label_offset {config.label_offset}"
        )
    if top > LARGEST_VALUE:
        raise DatasetError(
            f"label files under {folder} hold values up to {top + config.label_offset}, expected "
            f"class numbers up to {LARGEST_VALUE}"
        )
    return tuple(f"class {number}" for number in range(top + 1))


def _info(names: tuple[str, ...], config: FolderConfig) -> DatasetInfo:
    if not names:
        raise DatasetError("data.classes is an empty list, expected at least one name")
    unknown = [name for name in config.things if name not in names]
    if unknown:
        raise DatasetError(
            f"data.things names {', '.join(unknown)}, which data.classes does not list"
        )
    if config.colors is not None and len(config.colors) != len(names):
        raise DatasetError(
            f"data.colors must hold one colour per class, got {len(config.colors)} "
            f"for {len(names)} classes"
        )
    return DatasetInfo(
        classes=names,
        things=frozenset(names.index(name) for name in config.things),
        colors=config.colors or palette(len(names)),
        category_ids=tuple(number + config.label_offset for number in range(len(names))),
    )
