"""Grouping of images by aspect ratio, so that batches need less padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maskformer.data.image_files.opening import ImageSource
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.progress import map_in_threads
from maskformer.data.sample import Dataset, Sample
from maskformer.errors import DatasetError


class GroupedByAspect:
    """A data set each of whose training batches holds either landscape or portrait images only.

    Args:
        dataset: the data set.
        landscape: `[N]` bool, whether each image is wider than high; see `find_landscape`.
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
    """Find the images of a data set that are wider than high, from the headers and metadata of all
    files.

    If the images are not files, because they are generated or downloaded, all are in one group. A
    file that cannot be read counts as not wider than high; reading its sample will report it.

    Args:
        dataset: a data set of N images.
        reader: reads the size after EXIF orientation.

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

    # Without `count`, which would stop before the progress bar is completed.
    return np.fromiter(map_in_threads(is_landscape, files, "Reading image sizes"), np.bool_)
