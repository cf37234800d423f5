"""Semantic data sets on disk: a folder of images, a folder of label files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.config.schema import FolderConfig
from maskformer.data.datasets.class_names import describe_classes, read_names
from maskformer.data.datasets.label_check import mask_remedy, suspicious_labels, white_of_masks
from maskformer.data.datasets.label_colors import with_colors_of_labels
from maskformer.data.datasets.label_table import (
    LARGEST_VALUE,
    OUTSIDE,
    LabelTable,
    count_values,
    mapped_table,
    offset_table,
)
from maskformer.data.datasets.label_values import explain_label_values
from maskformer.data.datasets.objects import split_objects
from maskformer.data.datasets.split_files import folders_of, split_files
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.images import check_same_size, read_labels
from maskformer.data.pairing import Pair
from maskformer.data.progress import track
from maskformer.data.sample import Sample, Split, check_index, evenly_spread
from maskformer.errors import DatasetError, LabelValueError


class Folder:
    """Images and label files that share their relative names, one raw value per class.

    Each sample has one segment per class present, in the order of the classes; with files of
    objects, one per object of each thing.

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
        self._pairs, self.notes = split_files(config, split)
        self._split: Split = split
        self._table = _table(config, self._pairs, split)
        self.info = describe_classes(self._table.names, self._table.numbers, config)
        if config.colors is None:
            self.info = with_colors_of_labels(self.info, self._pairs[0].labels)
        self._images = config.root / folders_of(config, split).images

    @property
    def files(self) -> list[tuple[Path, ...]]:
        """Each image file and its label file, and the file of its objects if there is one."""
        return [
            tuple(file for file in (pair.image, pair.labels, pair.objects) if file is not None)
            for pair in self._pairs
        ]

    @property
    def num_images(self) -> int:
        return len(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self._pairs[check_index(index, len(self._pairs))]
        image, frame = self._reader.read(pair.image)
        limit = self.config.max_pixels
        values = read_labels(pair.labels, frame, limit, colors=self._table.colors)
        check_same_size(image, pair.image, values, pair.labels)
        classes, segments = self._to_segments(values, pair.labels)
        if pair.objects is not None:
            objects = read_labels(pair.objects, frame, limit)
            check_same_size(image, pair.image, objects, pair.objects)
            classes, segments = split_objects(
                classes, segments, objects, self.info, pair.objects, self.config.ignore
            )
        return Sample(
            image=image,
            segments=torch.from_numpy(segments),
            labels=torch.from_numpy(classes),
            crowd=torch.zeros(len(classes), dtype=torch.bool),
            name=pair.name,
            file_name=pair.image.relative_to(self._images).as_posix(),
            label_file=pair.labels,
        )

    def explain(self, errors: Sequence[LabelValueError]) -> str:
        """One message for label values outside the classes, gathered from several files."""
        return explain_label_values(errors, self.config, self.info)

    def look_for_mistakes(self, limit: int) -> list[str]:
        """Looks at the raw values of up to `limit` label files; see `suspicious_labels`."""
        files = [self._pairs[k].labels for k in evenly_spread(len(self._pairs), limit)]
        return suspicious_labels(files, self.config, self.info, self._split)

    def _to_segments(
        self, values: NDArray[np.integer], file: Path
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Classes present, ascending, and the map that indexes them, -1 for void."""
        present, counts = count_values(values)
        classes_of = self._table.classes(present)
        bad = classes_of == OUTSIDE
        if bad.any():
            error = LabelValueError(
                "",
                str(file),
                dict(zip(present[bad].tolist(), counts[bad].tolist(), strict=True)),
                tuple(present.tolist()),
            )
            raise LabelValueError(self.explain([error]), error.file, error.values, error.found)
        classes = np.unique(classes_of[classes_of >= 0])
        segment_of = np.where(classes_of >= 0, np.searchsorted(classes, classes_of), -1)
        return classes, _look_up(segment_of.astype(np.int32), present, values)


def _look_up(
    numbers: NDArray[np.int32], present: NDArray[np.int64], values: NDArray[np.integer]
) -> NDArray[np.int32]:
    """The number of each pixel's value; `numbers` belong to the values present."""
    if present[0] < 0 or present[-1] > LARGEST_VALUE:
        return numbers[np.searchsorted(present, values)]
    table = np.zeros(present[-1] + 1, np.int32)
    table[present] = numbers
    return table[values]


def _table(config: FolderConfig, pairs: Sequence[Pair], split: Split) -> LabelTable:
    if config.label_map is not None:
        return mapped_table(config.label_map, config)
    if config.classes is not None:
        names = read_names(config.classes, config.root, "data.classes")
    else:
        train = pairs if split == "train" else split_files(config, "train").pairs
        names = _number_classes(config, [pair.labels for pair in train])
    return offset_table(names, config)


def _number_classes(config: FolderConfig, label_files: Sequence[Path]) -> tuple[str, ...]:
    """Names the classes by number, up to the largest value that any training label has."""

    def values_of(file: Path) -> set[int]:
        return {*count_values(read_labels(file, max_pixels=config.max_pixels))[0].tolist()}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        scan = pool.map(values_of, label_files)
        found = set().union(*track(scan, len(label_files), "Counting classes"))
    folder = config.root / config.train.labels
    if white := white_of_masks(found):
        raise DatasetError(
            f"label files under {folder} hold only 0 and {white}: {mask_remedy(white)}"
        )
    top = max(found - {*config.ignore}, default=config.label_offset - 1) - config.label_offset
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
