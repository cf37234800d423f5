"""Conversion of values of any bit depth to 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


@dataclass(frozen=True)
class ValueScale:
    """The values that are mapped to 0 and 255.

    Args:
        value_range: `data.value_range`.
        percentiles: `data.percentiles`, computed for each band of each image.
    """

    value_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    @property
    def is_given(self) -> bool:
        return self.value_range is not None or self.percentiles is not None

    def to_uint8(self, values: Values, top: float | None = None) -> NDArray[np.uint8]:
        """Convert values `[H, W, C]` of any real dtype to uint8. Values outside of a given
        range become 0 or 255, and NaN becomes 0.

        Args:
            values: the values.
            top: the largest value at the bit depth that the file states; by default, 65535 for
                integers and 255 for floats.

        Raises:
            ValueError: no range is given, and values are not finite, are outside of 0..top, or
                cover so little of it that most of their levels would be lost.
        """
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * 255
        if not self.is_given and values.dtype == np.uint8:
            return values
        if not self.is_given:
            return _by_depth(values, top)
        result = np.empty(values.shape, np.uint8)
        for band in range(values.shape[2]):
            low, high = self.value_range or _percentiles(values[..., band], self.percentiles)
            result[..., band] = _stretch(values[..., band], low, high)
        return result


def _by_depth(values: Values, top: float | None) -> NDArray[np.uint8]:
    floating = values.dtype.kind == "f"
    top = top or (255 if floating else 65535)
    finite = _finite(values)
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (math.nan, math.nan)
    fits = finite.size == values.size and low >= 0 and high <= top
    # A constant image has no contrast to lose.
    if not fits or 0 < high - low < (top + 1) / 4:
        levels = (
            f", which would leave {int((high - low) * 256 / top) + 1} of 256 levels" if fits else ""
        )
        raise ValueError(
            f"{values.dtype.name} values from {low:g} to {high:g}"
            + (" and some that are not finite" if finite.size < values.size else levels)
            + "; set data.value_range to the lowest and the highest value of the data set, such as "
            + likely_range(low, high)
            + ", or data.percentiles: [2, 98] to stretch each image separately"
            + (f" (value_range [0, {top:g}] uses this image as it is)" if fits else "")
        )
    if floating:
        return values.astype(np.uint8)
    return (values >> (int(top + 1).bit_length() - 9)).astype(np.uint8)


def _finite(values: Values) -> Values:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def likely_range(low: float, high: float) -> str:
    """Return a plausible `data.value_range` that contains the values, as YAML."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "[0, 1]"
    if low < 0:
        return f"[{low:g}, {high:g}]"
    if high <= 1:
        return "[0, 1]"
    if low < high / 2:
        return f"[0, {2 ** math.ceil(math.log2(high + 1)) - 1}]"
    return f"[{low:g}, {high:g}]"


def _percentiles(band: Values, limits: tuple[float, float] | None) -> tuple[float, float]:
    finite = _finite(band)
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, limits or (0, 100))
    return float(low), float(high)


def _stretch(band: Values, low: float, high: float) -> NDArray[np.uint8]:
    dtype = np.float64 if band.dtype.itemsize > 2 else np.float32
    levels = np.subtract(band, low, dtype=dtype) * (255 / (high - low) if high > low else 0)
    return np.nan_to_num(levels.clip(0, 255).round(), copy=False).astype(np.uint8)
