"""Colours that tell classes apart."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]

GOLDEN_ANGLE = 0.381966
TONES = ((0.72, 0.92), (0.50, 0.98), (0.85, 0.66), (0.38, 0.78))
"""Saturation and value; neighbouring classes differ in tone as well as in hue."""


def palette(count: int) -> tuple[Color, ...]:
    """RGB of `count` classes. Colour k is the same whatever the count."""
    return tuple(_color(k) for k in range(count))


def _color(k: int) -> Color:
    saturation, value = TONES[(k + k // len(TONES) ** 2) % len(TONES)]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + k * GOLDEN_ANGLE) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
