"""Objects that a second label file separates, as in VOC's `SegmentationObject`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskformer.data.image_files.opening import ImageSource
from maskformer.data.sample import DatasetInfo
from maskformer.errors import DatasetError
from maskformer.system.text import escape


def split_objects(
    classes: NDArray[np.int64],
    segments: NDArray[np.int32],
    objects: NDArray[np.integer],
    info: DatasetInfo,
    file: ImageSource,
    ignore: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Split the segments of thing classes into one segment per object.

    Args:
        classes: `[T]`, the class of each segment.
        segments: `[H, W]`, the index into `classes`, -1 for void.
        objects: `[H, W]`, the number of each pixel's object, from 1 on; objects of different
            classes may have the same number.
        info: the classes.
        file: the file of the objects, for the message.
        ignore: numbers that mean void.

    Returns:
        The new classes and segments, ordered by class and object number.

    Raises:
        DatasetError: pixels of things have no object number.
    """
    # The appended element is for void: index -1 selects the last one.
    is_thing = np.append(np.isin(classes, [*info.things]), False)[segments]
    unnumbered = is_thing & ((objects <= 0) | np.isin(objects, ignore))
    if unnumbered.any():
        names = [escape(info.classes[k]) for k in classes[np.unique(segments[unnumbered])]]
        raise DatasetError(
            f"file {escape(file)} gives no object number to {unnumbered.sum()} pixels of "
            f"{', '.join(names)} (0 and data.ignore are not objects): correct the file, or set "
            "data.things to the classes whose objects it numbers"
        )
    numbers = np.where(is_thing, objects, 0).astype(np.int64)
    inside = segments >= 0
    found, positions = np.unique(
        segments[inside].astype(np.int64) << 32 | numbers[inside], return_inverse=True
    )
    split = np.full(segments.shape, -1, np.int32)
    split[inside] = positions
    return classes[found >> 32], split
