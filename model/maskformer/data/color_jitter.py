"""The photometric distortion of SSD (Liu et al., 2016, section 2.2), on uint8 RGB.

Levels are truncated, and hue and saturation are those of 8 bits (H in steps of 2 degrees, S in
0..255, as OpenCV has them), since the published models were trained so.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
"""In steps of 2 degrees, of which the circle has 180."""
_CIRCLE, _SECTOR = 180, 30
_FIXED_POINT = 12
"""Binary places of the quotients in hue and saturation."""


def distort_color(image: Tensor, rng: random.Random) -> Tensor:
    """Brightness, contrast, saturation and hue, each half of the time; `[C, H, W]` uint8.

    Other numbers of channels than 3 have no saturation and no hue.
    """
    if rng.random() < 0.5:
        image = scale_levels(image, offset=rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _distort_contrast(image, rng)
    if len(image) == 3 and rng.random() < 0.5:
        image = scale_saturation(image, rng.uniform(*SATURATION))
    if len(image) == 3 and rng.random() < 0.5:
        image = turn_hue(image, rng.randint(-HUE, HUE))
    if not contrast_first:
        image = _distort_contrast(image, rng)
    return image


def scale_levels(levels: Tensor, factor: float = 1.0, offset: float = 0.0) -> Tensor:
    """`factor` times uint8 levels plus `offset`, clipped to 0..255 and truncated to uint8."""
    return (levels.float() * factor + offset).clamp(0, 255).to(torch.uint8)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies S of 8-bit HSV, `[3, H, W]` uint8."""
    hue, saturation, value = to_hsv(image)
    return from_hsv(hue, scale_levels(saturation, factor), value)


def turn_hue(image: Tensor, steps: int) -> Tensor:
    """Adds `steps` of 2 degrees to H of 8-bit HSV, `[3, H, W]` uint8."""
    hue, saturation, value = to_hsv(image)
    return from_hsv((hue + steps) % _CIRCLE, saturation, value)


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in 0..179 (int32), saturation and value in 0..255 (uint8), each `[H, W]`, rounded."""
    red, green, blue = image.int()
    value = image.amax(0).int()
    spread = value - image.amin(0)
    saturation = _quotient(spread, 255, value)
    # The sector of the largest channel; of equal ones the first counts.
    # Products with masks: several times as fast as `torch.where`.
    is_red = value == red
    is_green = (value == green) & ~is_red
    distance = is_red * (green - blue) + is_green * (blue - red + 2 * spread)
    distance += ~(is_red | is_green) * (red - green + 4 * spread)
    hue = _quotient(distance, _SECTOR, spread)
    return hue % _CIRCLE, saturation.to(torch.uint8), value.byte()


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The `[3, H, W]` uint8 of what `to_hsv` returns, rounded."""
    share, top = saturation.float() / 255, value.float()
    position = hue.float() / _SECTOR
    sector = position.floor()
    within = position - sector
    low = top * (1 - share)
    falling, rising = top * (1 - share * within), top * (1 - share * (1 - within))
    levels = torch.stack([top, falling, low, rising]).round().to(torch.uint8)
    top, falling, low, rising = levels
    number = sector.to(torch.uint8)
    is_in = [number == k for k in range(6)]

    def channel(first: int) -> Tensor:
        """One that is the largest in the sector `first` and in that before it."""
        after = [*is_in[first:], *is_in[:first]]
        top_or_low = (after[0] | after[5]) * top + (after[2] | after[3]) * low
        return top_or_low + after[1] * falling + after[4] * rising

    return torch.stack([channel(0), channel(2), channel(4)])


def _quotient(numerator: Tensor, factor: int, denominator: Tensor) -> Tensor:
    """`factor * numerator / denominator` in fixed point, rounded half up; 0 by 0 is 0."""
    divisor = denominator.double().clamp(min=1)
    inverse = (factor * 2**_FIXED_POINT / divisor).round().int()
    return (numerator * inverse + 2 ** (_FIXED_POINT - 1)) >> _FIXED_POINT


def _distort_contrast(image: Tensor, rng: random.Random) -> Tensor:
    return scale_levels(image, rng.uniform(*CONTRAST)) if rng.random() < 0.5 else image
