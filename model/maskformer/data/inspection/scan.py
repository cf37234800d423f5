"""Scan of a split: statistics of its samples, and the errors in reading them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskformer.data.progress import map_in_threads
from maskformer.data.sample import Dataset, evenly_spread, segment_areas
from maskformer.errors import DatasetError, LabelValueError


@dataclass(frozen=True)
class Scan:
    """Statistics of the images of one split.

    Attributes:
        indices: `[N]`, the indices of the images that can be used.
        present: `[N, K]` bool, the classes that occur in each of them.
        pixels: `[K + 1]`, the number of pixels of each class and, last, of void.
        segments: `[K]`, the number of segments of each class, without crowds.
        max_segments: the largest number of segments in an image, without crowds.
        sizes: the number of images of each `(height, width)`.
        empty_segments: the number of listed segments without pixels.
        label_values: the raw values in all labels that could be read; see `Sample`.
        errors: the errors of the images that cannot be used, by index.
        complete: whether all images were read and can be used.
    """

    indices: NDArray[np.int64]
    present: NDArray[np.bool_]
    pixels: NDArray[np.int64]
    segments: NDArray[np.int64]
    max_segments: int
    sizes: Counter[tuple[int, int]]
    empty_segments: int
    label_values: frozenset[int]
    errors: dict[int, DatasetError]
    complete: bool

    @property
    def num_read(self) -> int:
        """The number of images that were read, with or without an error."""
        return len(self.indices) + len(self.errors)

    def choose_varied(self, count: int) -> list[int]:
        """Choose up to `count` images that together show many classes; return their indices.

        This is greedy: the next image has the most classes that are not yet shown and, among
        equals, is farthest from the chosen ones. Once all classes are shown, it starts over.
        """
        available, wanted = np.ones(len(self.indices), bool), self.present.any(0)
        chosen: list[int] = []
        while available.any() and len(chosen) < count:
            gain = np.where(available, (self.present & wanted).sum(1), -1)
            if gain.max() == 0 and not wanted.all():
                wanted = np.ones_like(wanted)
                continue
            ties = np.flatnonzero(gain == gain.max())
            apart = np.abs(ties[:, None] - np.array(chosen or [0])).min(1)
            best = int(ties[apart.argmax()])
            available[best] = False
            wanted = wanted & ~self.present[best]
            chosen.append(best)
        return self.indices[chosen].tolist()


class _ImageStatistics(NamedTuple):
    """Statistics of one image; see `Scan`."""

    pixels: NDArray[np.int64]
    segments: NDArray[np.int64]
    size: tuple[int, int]
    empty_segments: int
    label_values: tuple[int, ...]


def scan_split(dataset: Dataset, limit: int, title: str) -> Scan:
    """Read all images of a split, or `limit` evenly spread ones.

    Args:
        dataset: the split.
        limit: the largest number of images to read.
        title: the title of the progress bar.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    total, classes = len(dataset), dataset.info.num_classes
    indices = evenly_spread(total, limit)
    pixels, segments = np.zeros(classes + 1, np.int64), np.zeros(classes, np.int64)
    usable, present, empty_segments, max_segments = [], [], 0, 0
    values: set[int] = set()
    errors: dict[int, DatasetError] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    results = map_in_threads(partial(_scan_image, dataset), indices, title)
    for index, found in zip(indices, results, strict=True):
        if isinstance(found, DatasetError):
            errors[index] = found
            if isinstance(found, LabelValueError):
                values.update(found.found)
            continue
        usable.append(index)
        present.append(found.pixels[:-1] > 0)
        pixels += found.pixels
        segments += found.segments
        max_segments = max(max_segments, int(found.segments.sum()))
        sizes[found.size] += 1
        empty_segments += found.empty_segments
        values.update(found.label_values)
    return Scan(
        np.array(usable, np.int64),
        np.array(present, np.bool_).reshape(-1, classes),
        pixels,
        segments,
        max_segments,
        sizes,
        empty_segments,
        frozenset(values),
        errors,
        complete=len(usable) == total,
    )


def _scan_image(dataset: Dataset, index: int) -> _ImageStatistics | DatasetError:
    try:
        sample = dataset[index]
    except DatasetError as error:
        return error
    classes = dataset.info.num_classes
    labels, areas = sample.labels.numpy(), segment_areas(sample.segments, len(sample.labels))
    pixels = np.zeros(classes + 1, np.int64)
    np.add.at(pixels, labels, areas.numpy())
    pixels[-1] = sample.segments.numel() - pixels.sum()
    objects = np.bincount(labels[~sample.crowd.numpy()], minlength=classes)
    return _ImageStatistics(
        pixels, objects, sample.size, sample.empty_segments, sample.label_values
    )
