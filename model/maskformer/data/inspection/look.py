"""What the samples of a split show."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskformer.data.progress import track
from maskformer.data.sample import Dataset, evenly_spread, segment_areas
from maskformer.errors import DatasetError, LabelValueError


@dataclass(frozen=True)
class Look:
    """What was seen of one split.

    Attributes:
        indices: of the images that can be used, `[N]`.
        present: which classes each of them shows, bool `[N, K]`.
        pixels: per class, void last, `[K + 1]`.
        segments: per class, crowds not counted, `[K]`.
        sizes: how many images there are of each `(height, width)`.
        left_out: listed segments without a pixel.
        label_values: the raw values of all labels that could be read; see `Sample`.
        errors: why the other images cannot be used, by index.
        complete: all images were read.
    """

    indices: NDArray[np.int64]
    present: NDArray[np.bool_]
    pixels: NDArray[np.int64]
    segments: NDArray[np.int64]
    sizes: Counter[tuple[int, int]]
    left_out: int
    label_values: frozenset[int]
    errors: dict[int, DatasetError]
    complete: bool

    @property
    def looked_at(self) -> int:
        """How many images were read, or could not be."""
        return len(self.indices) + len(self.errors)

    def varied(self, count: int) -> list[int]:
        """Up to `count` images that show as many classes as so few can, as indices of the data set.

        Each is one with the most classes that none before it shows, far from those before it; when
        all classes were seen, it begins anew.
        """
        left, wanted = np.ones(len(self.indices), bool), self.present.any(0)
        chosen: list[int] = []
        while left.any() and len(chosen) < count:
            gain = np.where(left, (self.present & wanted).sum(1), -1)
            if gain.max() == 0 and not wanted.all():
                wanted = np.ones_like(wanted)
                continue
            ties = np.flatnonzero(gain == gain.max())
            apart = np.abs(ties[:, None] - np.array(chosen or [0])).min(1)
            best = int(ties[apart.argmax()])
            left[best] = False
            wanted = wanted & ~self.present[best]
            chosen.append(best)
        return self.indices[chosen].tolist()


class _Seen(NamedTuple):
    """What one image shows; see `Look`."""

    pixels: NDArray[np.int64]
    segments: NDArray[np.int64]
    size: tuple[int, int]
    left_out: int
    label_values: tuple[int, ...]


def look_at(dataset: Dataset, limit: int, title: str) -> Look:
    """Reads all images of a split, or `limit` of them evenly spread.

    Args:
        title: of the progress bar.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    total, classes = len(dataset), dataset.info.num_classes
    indices = evenly_spread(total, limit)
    pixels, segments = np.zeros(classes + 1, np.int64), np.zeros(classes, np.int64)
    usable, present, left_out = [], [], 0
    values: set[int] = set()
    errors: dict[int, DatasetError] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = track(pool.map(partial(_see, dataset), indices), len(indices), title)
        for index, seen in zip(indices, looks, strict=True):
            if isinstance(seen, DatasetError):
                errors[index] = seen
                if isinstance(seen, LabelValueError):
                    values.update(seen.found)
                continue
            usable.append(index)
            present.append(seen.pixels[:-1] > 0)
            pixels += seen.pixels
            segments += seen.segments
            sizes[seen.size] += 1
            left_out += seen.left_out
            values.update(seen.label_values)
    return Look(
        np.array(usable, np.int64),
        np.array(present, np.bool_).reshape(-1, classes),
        pixels,
        segments,
        sizes,
        left_out,
        frozenset(values),
        errors,
        complete=len(usable) == total,
    )


def _see(dataset: Dataset, index: int) -> _Seen | DatasetError:
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
    return _Seen(pixels, objects, sample.size, sample.left_out, sample.label_values)
