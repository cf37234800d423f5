"""Masks of the COCO instances format: polygons and run lengths, validated before decoding."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskformer.errors import DatasetError

Mask = NDArray[np.bool_]
MAX_STEPS = 1 << 26
"""Limit of a polygon's perimeter in fifths of a pixel, the steps in which pycocotools traces it."""
MAX_BITS = 60
"""Limit of the bits of a number in COCO's compressed run lengths."""


def mask_of_runs(runs: list[int], height: int, width: int) -> Mask:
    """Decode run lengths to a mask `[H, W]`."""
    inside = np.arange(len(runs)) % 2 == 1
    # COCO's order is column-major.
    return np.repeat(inside, runs).reshape(width, height).T


def paint_runs(canvas: NDArray[np.int32], runs: list[int], number: int) -> None:
    """Write a number to the pixels of a mask in a column-major image `[W * H]`."""
    ends = list(itertools.accumulate(runs))
    for start, stop in zip(ends[::2], ends[1::2], strict=False):
        canvas[start:stop] = number


def runs_of_segmentation(segmentation: Any, height: int, width: int) -> list[int]:
    """Return the run lengths of an object in column-major order, alternating outside and inside.

    Args:
        segmentation: a list of polygons `[x, y, x, y, ...]` in pixels, or `{"size": [H, W],
            "counts": ...}` with run lengths as numbers or as COCO's compressed text.
        height, width: the size of the image.

    Raises:
        DatasetError: it is neither, or does not fit the image; the message does not name the file.
    """
    if segmentation is None or segmentation == []:
        return [height * width]
    if isinstance(segmentation, dict):
        return _read_runs(segmentation, height, width)
    if isinstance(segmentation, list):
        polygons = [_check_polygon(polygon, height, width) for polygon in segmentation]
        return _draw([polygon for polygon in polygons if len(polygon) >= 6], height, width)
    raise DatasetError("its segmentation is neither a list of polygons nor run lengths")


def are_normalised(segmentations: Iterable[Any]) -> bool:
    """Whether there are polygons and all their coordinates are in 0..1: relative to the image size
    instead of in pixels.
    """
    numbers = (
        number
        for segmentation in segmentations
        if isinstance(segmentation, list)
        for polygon in segmentation
        if isinstance(polygon, list)
        for number in polygon
    )
    first = next(numbers, None)
    return first is not None and all(
        isinstance(number, int | float) and 0 <= number <= 1
        for number in itertools.chain([first], numbers)
    )


def encode_mask(mask: Mask) -> dict[str, Any]:
    """Encode a mask `[H, W]` as COCO's compressed run lengths.

    From the fourth run on, each length is stored as the difference to the last but one. Numbers are
    written with five bits per character, the lowest first, and a sixth bit that is set if more
    characters follow.
    """
    lengths = run_lengths(mask)
    lengths[3:] -= lengths[1:-2].copy()
    columns = []  # the k-th character of every number, 0 for numbers with fewer
    more = np.ones(len(lengths), np.bool_)
    while more.any():
        bits = lengths & 31
        lengths >>= 5
        codes = np.where(more, 48 + bits, 0)
        more &= lengths != np.where(bits & 16, -1, 0)
        columns.append(codes + 32 * more)
    text = np.stack(columns, 1).astype(np.uint8)
    return {"size": list(mask.shape), "counts": text[text > 0].tobytes().decode("ascii")}


def run_lengths(mask: Mask) -> NDArray[np.int64]:
    """Return the run lengths of a mask `[H, W]` in column-major order, alternating outside and
    inside; the inverse of `mask_of_runs`.

    Only the bounding box is scanned, because most objects are small.
    """
    height = len(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return np.array([mask.size])
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = np.zeros((right - left, bottom - top + 2), np.bool_)
    box[:, 1:-1] = mask[top:bottom, left:right].T
    column, row = np.nonzero(box[:, 1:] != box[:, :-1])
    changes = (left + column) * height + top + row
    # A run that ends at the bottom of a column may continue at the top of the next one.
    same = changes[1:] == changes[:-1]
    continues = np.append(same, False) | np.append(False, same)
    changes = changes[~continues & (changes < mask.size)]
    lengths: NDArray[np.int64] = np.diff(changes, prepend=0, append=mask.size)
    return lengths


def check_pycocotools() -> None:
    """Check that pycocotools, which draws polygons, is installed.

    Raises:
        DatasetError: it is not.
    """
    try:
        importlib.import_module("pycocotools.mask")
    except ImportError:
        raise DatasetError(
            "data.format coco_instances needs pycocotools to draw polygons; install it: "
            "pip install 'mfkernels[coco]', or pip install pycocotools"
        ) from None


def _draw(polygons: list[list[float]], height: int, width: int) -> list[int]:
    if not polygons:
        return [height * width]
    from pycocotools import mask

    runs = mask.frPyObjects(polygons, height, width)
    while len(runs) > 1:  # merge in pairs, because merging one by one takes quadratic time
        runs = [mask.merge(runs[k : k + 2]) for k in range(0, len(runs), 2)]
    return _runs_of_text(runs[0]["counts"].decode("ascii"), height * width)


def _check_polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Validate a polygon: pycocotools would trace any coordinates until memory is exhausted."""
    if isinstance(polygon, int | float):
        raise DatasetError("its segmentation is one polygon, expected a list of polygons")
    try:
        points = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.full(1, np.nan)
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
        raise DatasetError("one of its polygons is not a list of pairs of numbers x, y")
    points = points.reshape(-1, 2)
    size = np.array([width, height])
    if ((points < -size) | (points > 2 * size)).any():
        raise DatasetError(
            f"one of its polygons extends beyond the image of {width}x{height} pixels by more than "
            "the image's size; expected coordinates in pixels"
        )
    steps = 5 * np.abs(points - np.roll(points, 1, 0)).max(1, initial=0).sum()
    if steps > MAX_STEPS:
        raise DatasetError(
            f"one of its polygons is {steps / 5:,.0f} pixels long, expected at most "
            f"{MAX_STEPS // 5:,}"
        )
    return points.ravel().tolist()


def _read_runs(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    if segmentation.get("size") != [height, width]:
        raise DatasetError(
            f"its run lengths are for an image of size {segmentation.get('size')!r:.60}, expected "
            f"[{height}, {width}] (height, width)"
        )
    counts = segmentation.get("counts")
    runs = _runs_of_text(counts, height * width) if isinstance(counts, str) else counts
    if not (
        isinstance(runs, list)
        and all(type(run) is int and run >= 0 for run in runs)
        and sum(runs) == height * width
    ):
        raise DatasetError(f"its run lengths do not add up to {height} x {width} pixels")
    return runs


def _runs_of_text(text: str, pixels: int) -> list[int]:
    """Decode COCO's compressed run lengths: 5 bits per character, least significant first, as
    differences to the run before the last. Decoding stops at the first run that is impossible in an
    image of so many pixels.

    Raises:
        DatasetError: the text ends within a number, or a number is longer than `MAX_BITS`.
    """
    runs: list[int] = []
    codes = iter(ord(character) - 48 for character in text)
    for first in codes:
        value, shift, code = 0, 0, first
        for code in itertools.chain([first], codes):
            value |= (code & 31) << shift
            shift += 5
            if not code & 32 or shift == MAX_BITS:
                break
        if code & 32:
            raise DatasetError("its run lengths hold a number that does not end")
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if not 0 <= runs[-1] <= pixels:
            break
    return runs
