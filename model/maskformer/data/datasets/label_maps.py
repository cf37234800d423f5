"""Base class of data sets whose labels are a map of raw values per image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.config.schema import PixelLabels
from maskformer.data.datasets.class_names import describe_classes, read_names
from maskformer.data.image_files.opening import ImageSource
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.label_reader import check_same_size, read_labels
from maskformer.data.labels.label_check import mask_remedy, suspicious_labels, white_of_masks
from maskformer.data.labels.label_colors import with_colors_of_labels
from maskformer.data.labels.label_table import (
    LARGEST_VALUE,
    OUTSIDE,
    count_values,
    mapped_table,
    offset_table,
)
from maskformer.data.labels.label_values import explain_label_values
from maskformer.data.labels.objects import split_objects
from maskformer.data.progress import map_in_threads
from maskformer.data.sample import Sample, Split, check_index
from maskformer.errors import DatasetError, LabelValueError


class LabelledImage(NamedTuple):
    """An image and its labels.

    Attributes:
        name: the name of the image without suffix.
        image, labels: the files.
        objects: the file with the object number of each pixel, if there is one.
        file_name: the path of the image relative to its folder; empty if it is not in a folder.
    """

    name: str
    image: ImageSource
    labels: ImageSource
    objects: ImageSource | None = None
    file_name: str = ""


class LabelMaps:
    """Images with label maps of the same size and one raw value per class.

    A sample has one segment per class that occurs, in the order of the classes. With object files,
    a thing class has one segment per object.

    Args:
        config: how values are mapped to classes.
        split: the split.
        images: the images of the split.
        training: returns the training images. Their labels determine the number of classes if the
            recipe has no list of classes.
        location: where the labels are, for messages.

    Raises:
        DatasetError: no classes are found, or the settings contradict each other.
    """

    def __init__(
        self,
        config: PixelLabels,
        split: Split,
        images: Sequence[LabelledImage],
        training: Callable[[], Sequence[LabelledImage]],
        location: str,
    ) -> None:
        self._labels_config = config
        self._reader = ImageReader.from_config(config)
        self._images, self._split = images, split
        if config.label_map is not None:
            self._table = mapped_table(config.label_map, config)
        elif config.classes is not None:
            names = read_names(config.classes, config.root, "data.classes")
            self._table = offset_table(names, config)
        else:
            labels = [image.labels for image in training()]
            self._table = offset_table(_number_classes(config, labels, location), config)
        self.info = describe_classes(self._table.names, self._table.numbers, config)
        if config.colors is None:
            self.info = with_colors_of_labels(self.info, images[0].labels)

    @property
    def num_images(self) -> int:
        return len(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        item, config = self._images[check_index(index, len(self._images))], self._labels_config
        image, frame = self._reader.read(item.image)
        limit = config.max_pixels
        values = read_labels(item.labels, frame, limit, colors=self._table.colors)
        check_same_size(image, item.image, values, item.labels)
        present, classes, segments = self._to_segments(values, item.labels)
        if item.objects is not None:
            objects = read_labels(item.objects, frame, limit)
            check_same_size(image, item.image, objects, item.objects)
            classes, segments = split_objects(
                classes, segments, objects, self.info, item.objects, config.ignore
            )
        return Sample(
            image=image,
            segments=torch.from_numpy(segments),
            labels=torch.from_numpy(classes),
            crowd=torch.zeros(len(classes), dtype=torch.bool),
            name=item.name,
            file_name=item.file_name,
            label_file=item.labels if isinstance(item.labels, Path) else None,
            label_values=present,
        )

    def explain(self, errors: Sequence[LabelValueError]) -> str:
        """Return one message on label values outside of the classes in several files."""
        return explain_label_values(errors, self._labels_config, self.info)

    def check_label_values(self, values: Collection[int]) -> list[str]:
        """Return warnings on the raw values of label files; see `suspicious_labels`."""
        return suspicious_labels(values, self._labels_config, self.info, self._split)

    def _to_segments(
        self, values: NDArray[np.integer], file: ImageSource
    ) -> tuple[tuple[int, ...], NDArray[np.int64], NDArray[np.int32]]:
        """Return the raw values that occur, their classes `[T]`, both ascending, and the segment
        map `[H, W]` of indices into the classes, -1 for void.
        """
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
        segments = _look_up(segment_of.astype(np.int32), present, values)
        return tuple(present.tolist()), classes, segments


def _look_up(
    numbers: NDArray[np.int32], present: NDArray[np.int64], values: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Replace each pixel's value by the number of that value; `numbers` belong to `present`."""
    if present[0] < 0 or present[-1] > LARGEST_VALUE:
        return numbers[np.searchsorted(present, values)]
    table = np.zeros(present[-1] + 1, np.int32)
    table[present] = numbers
    return table[values]


def _number_classes(
    config: PixelLabels, label_files: Sequence[ImageSource], location: str
) -> tuple[str, ...]:
    """Name the classes by number, up to the largest value in the training labels."""

    def values_of(file: ImageSource) -> set[int]:
        return {*count_values(read_labels(file, max_pixels=config.max_pixels))[0].tolist()}

    found: set[int] = set().union(*map_in_threads(values_of, label_files, "Counting classes"))
    if white := white_of_masks(found):
        raise DatasetError(
            f"label files under {location} hold only 0 and {white}: {mask_remedy(white)}"
        )
    top = max(found - {*config.ignore}, default=config.label_offset - 1) - config.label_offset
    if top < 0:
        raise DatasetError(
            f"no class found in {len(label_files)} label files under {location}: every value is "
            f"ignored or below data.label_offset {config.label_offset}"
        )
    if top > LARGEST_VALUE:
        raise DatasetError(
            f"label files under {location} hold values up to {top + config.label_offset}, expected "
            f"class numbers up to {LARGEST_VALUE}"
        )
    return tuple(f"class {number}" for number in range(top + 1))
