"""Sizes, bands and depth of the images of a folder."""

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
    """What some of the images are like.

    Attributes:
        size: median height and width.
        channels: bands of each image; 3 for RGB, grey and what becomes RGB.
        limits: the lowest and the highest value, where the depth does not tell what is black and
            white.
    """

    size: tuple[int, int]
    channels: int = RGB
    limits: tuple[float, float] | None = None

    @property
    def value_range(self) -> str:
        """`data.value_range` as YAML, empty where none is needed."""
        return "" if self.limits is None else likely_range(*self.limits)


def look_at_pixels(root: Path, names: Sequence[str]) -> Pixels:
    """Reads some of the images.

    Raises:
        DatasetError: one cannot be read, or they have different numbers of bands.
    """
    reader = ImageReader()
    sizes, limits, deep = [], [], False
    counts: Counter[int] = Counter()
    for index in evenly_spread(len(names), SAMPLE):
        image = reader.stored(root / names[index])
        values = image.values[..., :-1] if image.alpha else image.values
        sizes.append(turn_array(image.values, image.tag).shape[:2])
        counts[RGB if values.shape[2] == 1 else values.shape[2]] += 1
        finite = values[np.isfinite(values)]
        if finite.size:
            limits.append((float(finite.min()), float(finite.max())))
        deep = deep or not _tells_its_depth(image)
    if len(counts) > 1:
        found = " and ".join(str(count) for count in sorted(counts))
        raise DatasetError(
            f"{escape(root)} holds images of {found} channels; a data set has images of one kind: "
            "separate them"
        )
    height, width = np.median(np.array(sizes), axis=0)
    lows, highs = zip(*limits, strict=True) if limits else ((0.0,), (1.0,))
    return Pixels(
        (int(height), int(width)), next(iter(counts)), (min(lows), max(highs)) if deep else None
    )


def _tells_its_depth(image: Bands) -> bool:
    try:
        ValueScale().to_uint8(image.values, image.top)
    except ValueError:
        return False
    return True
