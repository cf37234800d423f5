"""Colours that tell classes apart."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]

GOLDEN_ANGLE = (3 - 5**0.5) / 2
"""Steps of this share of the colour circle never come close to a hue soon after it was used."""

TONES = ((0.75, 0.95), (0.38, 1.0), (0.9, 0.6), (0.35, 0.72), (0.6, 0.8), (0.6, 0.5))
"""Saturation and value, in turn: the few hues that are close together differ in tone."""


def palette(count: int) -> tuple[Color, ...]:
    """RGB of `count` classes. Colour k is the same whatever the count."""
    return tuple(_color(k) for k in range(count))


def _color(k: int) -> Color:
    saturation, value = TONES[k % len(TONES)]
    # Beyond the first rounds hues repeat, so tones shift a little.
    saturation -= 0.03 * (k // 60 % 5)
    value -= 0.03 * (k // 60 % 3)
    red, green, blue = colorsys.hsv_to_rgb((0.02 + k * GOLDEN_ANGLE) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
