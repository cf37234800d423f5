"""The photometric distortion of SSD (Liu et al., 2016, section 2.2), on uint8 RGB.

Values are truncated to integers, and hue and saturation have 8 bits as in OpenCV (H in steps of
2 degrees, S in 0..255), because the published models were trained like this.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
"""The largest change of the hue, in steps of 2 degrees."""
_CIRCLE, _SECTOR = 180, 30
_FIXED_POINT = 12
"""Number of fractional bits in the divisions for hue and saturation."""


def distort_color(image: Tensor, rng: random.Random) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image `[C, H, W]` uint8, each with
    probability 0.5. Saturation and hue are changed only if C is 3.
    """
    if rng.random() < 0.5:
        image = scale_levels(image, offset=rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _distort_contrast(image, rng)
    if len(image) == 3 and rng.random() < 0.5:
        image = scale_saturation(image, rng.uniform(*SATURATION))
    if len(image) == 3 and rng.random() < 0.5:
        image = shift_hue(image, rng.randint(-HUE, HUE))
    if not contrast_first:
        image = _distort_contrast(image, rng)
    return image


def scale_levels(levels: Tensor, factor: float = 1.0, offset: float = 0.0) -> Tensor:
    """Compute `factor * levels + offset` of uint8 levels, clipped to 0..255 and truncated."""
    return (levels.float() * factor + offset).clamp(0, 255).to(torch.uint8)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of an RGB image `[3, H, W]` uint8 in 8-bit HSV."""
    hue, saturation, value = to_hsv(image)
    return from_hsv(hue, scale_levels(saturation, factor), value)


def shift_hue(image: Tensor, steps: int) -> Tensor:
    """Shift the hue of an RGB image `[3, H, W]` uint8 by `steps` of 2 degrees, in 8-bit HSV."""
    hue, saturation, value = to_hsv(image)
    return from_hsv((hue + steps) % _CIRCLE, saturation, value)


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute hue in 0..179 (int32), and saturation and value in 0..255 (uint8), each `[H, W]`
    and rounded, of an RGB image `[3, H, W]`.
    """
    red, green, blue = image.int()
    value = image.amax(0).int()
    spread = value - image.amin(0)
    saturation = _quotient(spread, 255, value)
    # The largest channel determines the sector; of equal channels, the first does.
    # Multiplying by masks is several times as fast as `torch.where`.
    is_red = value == red
    is_green = (value == green) & ~is_red
    distance = is_red * (green - blue) + is_green * (blue - red + 2 * spread)
    distance += ~(is_red | is_green) * (red - green + 4 * spread)
    hue = _quotient(distance, _SECTOR, spread)
    return hue % _CIRCLE, saturation.to(torch.uint8), value.byte()


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert the result of `to_hsv` back to RGB, `[3, H, W]` uint8, rounded."""
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
        """Compute the channel that is largest in the sectors `first - 1` and `first`."""
        after = [*is_in[first:], *is_in[:first]]
        top_or_low = (after[0] | after[5]) * top + (after[2] | after[3]) * low
        return top_or_low + after[1] * falling + after[4] * rising

    return torch.stack([channel(0), channel(2), channel(4)])


def _quotient(numerator: Tensor, factor: int, denominator: Tensor) -> Tensor:
    """Compute `factor * numerator / denominator` in fixed point, rounded half up; 0 / 0 is 0."""
    divisor = denominator.double().clamp(min=1)
    inverse = (factor * 2**_FIXED_POINT / divisor).round().int()
    return (numerator * inverse + 2 ** (_FIXED_POINT - 1)) >> _FIXED_POINT


def _distort_contrast(image: Tensor, rng: random.Random) -> Tensor:
    return scale_levels(image, rng.uniform(*CONTRAST)) if rng.random() < 0.5 else image
