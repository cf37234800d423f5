"""The photometric distortion of SSD (Liu et al., 2016, section 2.2), on uint8 RGB."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
"""In steps of 2 degrees, of which the circle has 180."""


def distort_color(image: Tensor, rng: random.Random) -> Tensor:
    """Brightness, contrast, saturation and hue, each half of the time; `[C, H, W]` uint8.

    Other numbers of channels than 3 have no saturation and no hue.
    """
    if rng.random() < 0.5:
        image = _to_uint8(image.float() + rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _distort_contrast(image, rng)
    if len(image) == 3 and rng.random() < 0.5:
        image = scale_saturation(image, rng.uniform(*SATURATION))
    if len(image) == 3 and rng.random() < 0.5:
        image = F.adjust_hue(image, rng.randint(-HUE, HUE) / 180)
    if not contrast_first:
        image = _distort_contrast(image, rng)
    return image


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies S of HSV, clipped at 1; hue and value stay.

    The distance of each channel from the value V = max(R, G, B) is proportional to S.
    """
    pixels = image.float()
    value = pixels.amax(0, keepdim=True)
    spread = value - pixels.amin(0, keepdim=True)
    # S = spread / V; spread 0 is grey, which no factor changes.
    limit = torch.where(spread > 0, value / spread, torch.ones_like(value))
    return _to_uint8(value - (value - pixels) * limit.clamp(max=factor))


def _distort_contrast(image: Tensor, rng: random.Random) -> Tensor:
    if rng.random() < 0.5:
        return _to_uint8(image.float() * rng.uniform(*CONTRAST))
    return image


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
