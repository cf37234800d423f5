"""Objects told apart by a second file, as in VOC's `SegmentationObject`."""

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
    """Cuts the segments of things into objects.

    Args:
        classes: `[T]`, of each segment.
        segments: `[H, W]`, index into `classes`, -1 for void.
        objects: `[H, W]`, the number of each pixel's object, from 1 on; numbers of different
            classes may be the same.
        info: which classes are things.
        file: of the objects, for the message.
        ignore: numbers that mean void.

    Returns:
        Classes and segments, in the order of class and number.

    Raises:
        DatasetError: pixels of things have no number.
    """
    # Void, -1, is the last; there may be nothing else.
    is_thing = np.append(np.isin(classes, [*info.things]), False)[segments]
    lost = is_thing & ((objects <= 0) | np.isin(objects, ignore))
    if lost.any():
        names = [escape(info.classes[k]) for k in classes[np.unique(segments[lost])]]
        raise DatasetError(
            f"file {escape(file)} gives no object number to {lost.sum()} pixels of "
            f"{', '.join(names)}; 0 and data.ignore are no objects: correct it, or set data.things "
            "to the classes whose objects it numbers"
        )
    numbers = np.where(is_thing, objects, 0).astype(np.int64)
    inside = segments >= 0
    found, positions = np.unique(
        segments[inside].astype(np.int64) << 32 | numbers[inside], return_inverse=True
    )
    cut = np.full(segments.shape, -1, np.int32)
    cut[inside] = positions
    return classes[found >> 32], cut
