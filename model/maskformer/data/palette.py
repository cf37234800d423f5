"""Distinct colours for classes."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]

GOLDEN_ANGLE = (3 - 5**0.5) / 2
"""Step between the hues of consecutive classes, as a fraction of the colour circle. With the golden
angle, similar hues are far apart in the sequence.
"""

TONES = ((0.75, 0.95), (0.38, 1.0), (0.9, 0.6), (0.35, 0.72), (0.6, 0.8), (0.6, 0.5))
"""Saturation and value, used in turn, so that classes with similar hues differ in tone."""


def palette(count: int) -> tuple[Color, ...]:
    """Return RGB colours of `count` classes. Colour k does not depend on the count."""
    return tuple(_color(k) for k in range(count))


def _color(k: int) -> Color:
    saturation, value = TONES[k % len(TONES)]
    # Hues repeat for large k, so shift the tones a little.
    saturation -= 0.03 * (k // 60 % 5)
    value -= 0.03 * (k // 60 % 3)
    red, green, blue = colorsys.hsv_to_rgb((0.02 + k * GOLDEN_ANGLE) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
