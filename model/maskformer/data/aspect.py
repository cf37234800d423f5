"""Which images are wider than high: batches of one kind need less padding."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from maskformer.data.image_files.opening import ImageSource
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.progress import track
from maskformer.data.sample import Dataset, Sample
from maskformer.errors import DatasetError


class GroupedByAspect:
    """A data set whose training batches hold images that are wider than high, or only others.

    Args:
        dataset: what is grouped.
        landscape: `[N]` bool, whether an image is wider than high; see `find_landscape`.
    """

    def __init__(self, dataset: Dataset, landscape: NDArray[np.bool_]) -> None:
        self.info = dataset.info
        self.landscape = landscape
        self._dataset = dataset

    @property
    def num_images(self) -> int:
        return len(self.landscape)

    def __len__(self) -> int:
        return len(self.landscape)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[index]


def find_landscape(dataset: Dataset, reader: ImageReader) -> NDArray[np.bool_]:
    """Which images of a data set are wider than high, by the headers and metadata of all files.

    Images that are no files, as some data sets draw or download them, are one group, and files that
    cannot be read are not wider than high: they are reported where they are needed.

    Args:
        dataset: of N images.
        reader: how they are turned.

    Returns:
        `[N]` bool.
    """
    files = [row[0] for row in getattr(dataset, "files", ())]
    if not files:
        return np.zeros(len(dataset), np.bool_)

    def is_landscape(file: ImageSource) -> bool:
        try:
            height, width = reader.read_size(file)
        except DatasetError:
            return False
        return width > height

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = track(pool.map(is_landscape, files), len(files), "Reading image sizes")
        return np.fromiter(found, np.bool_)  # with a count, it would leave the bar before its end
