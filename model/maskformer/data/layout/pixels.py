"""Typical size, bands and bit depth of the images in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskformer.data.image_files.arrays import Bands
from maskformer.data.image_files.depth import ValueScale, likely_range
from maskformer.data.image_files.orientation import turn_array
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.sample import evenly_spread
from maskformer.errors import DatasetError
from maskformer.system.text import escape

SAMPLE = 30
RGB = 3


@dataclass(frozen=True)
class Pixels:
    """Properties of a sample of the images.

    Attributes:
        size: the median height and width.
        channels: the number of bands; 3 also for grey and other images that are converted to RGB.
        limits: the lowest and the highest value, if the bit depth does not determine which values
            are black and white.
    """

    size: tuple[int, int]
    channels: int = RGB
    limits: tuple[float, float] | None = None

    @property
    def value_range(self) -> str:
        """`data.value_range` as YAML, or "" if none is needed."""
        return "" if self.limits is None else likely_range(*self.limits)


def sample_pixels(root: Path, names: Sequence[str]) -> Pixels:
    """Read a sample of the images.

    Raises:
        DatasetError: an image cannot be read, or the numbers of bands differ.
    """
    reader = ImageReader()
    sizes, limits, needs_range = [], [], False
    counts: Counter[int] = Counter()
    for index in evenly_spread(len(names), SAMPLE):
        image = reader.stored(root / names[index])
        values = image.values[..., :-1] if image.alpha else image.values
        sizes.append(turn_array(image.values, image.tag).shape[:2])
        counts[RGB if values.shape[2] == 1 else values.shape[2]] += 1
        finite = values[np.isfinite(values)]
        if finite.size:
            limits.append((float(finite.min()), float(finite.max())))
        needs_range = needs_range or not _has_known_range(image)
    if len(counts) > 1:
        found = " and ".join(str(count) for count in sorted(counts))
        raise DatasetError(
            f"{escape(root)} holds images of {found} channels, but all images of a data set must "
            "have the same number: separate them"
        )
    height, width = np.median(np.array(sizes), axis=0)
    lows, highs = zip(*limits, strict=True) if limits else ((0.0,), (1.0,))
    limits_of_all = (min(lows), max(highs)) if needs_range else None
    return Pixels((int(height), int(width)), next(iter(counts)), limits_of_all)


def _has_known_range(image: Bands) -> bool:
    """Whether an image can be converted to 8 bits without `data.value_range`."""
    try:
        ValueScale().to_uint8(image.values, image.top)
    except ValueError:
        return False
    return True
