"""Random predictions and segments of given sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfkernels.targets import SegmentTargets


@dataclass(frozen=True)
class Sizes:
    """The sizes of a batch of predictions and of its ground-truth segments."""

    layers: int = 2
    segments: tuple[int, ...] = (3, 0, 2)
    """The number of segments of each image."""
    queries: int = 9
    classes: int = 7
    channels: int = 70
    """More channels than one step of a product covers."""
    low: tuple[int, int] = (7, 9)
    """Height and width of the pixel features."""
    size: tuple[int, int] = (28, 33)
    """Height and width of the images."""

    @property
    def images(self) -> int:
        return len(self.segments)


SMALL = Sizes()
ALIGNED = Sizes(channels=256, low=(8, 16), size=(32, 64))
"""Sizes that are multiples of 16 bytes, with as many channels as real models have: kernels have
separate code for aligned tensors, and products of many channels take several steps."""


def ade20k(images: int, layers: int) -> Sizes:
    """The sizes of a training step of the paper's ADE20K models, with 5 to 15 segments an image."""
    segments = tuple(5 + index % 11 for index in range(images))
    return Sizes(layers, segments, 100, 150, 256, (128, 128), (512, 512))


def predictions(sizes: Sizes, generator: torch.Generator) -> list[Tensor]:
    """Random class logits `[L, B, Q, K+1]`, mask embeddings `[L, B, Q, C]` and pixel features."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    rows = (sizes.layers, sizes.images, sizes.queries)
    return [
        normal(*rows, sizes.classes + 1, scale=2),
        normal(*rows, sizes.channels, scale=3 / sizes.channels**0.5),
        normal(sizes.images, sizes.channels, *sizes.low),
    ]


def segments(sizes: Sizes, generator: torch.Generator, *, overlap: bool) -> SegmentTargets:
    """Stripes of different classes: label maps with void in between, or masks that overlap."""
    height, width = sizes.size
    row = torch.arange(height)[:, None].expand(height, width)
    masks, maps, labels = [], [], []
    for count in sizes.segments:
        own = torch.zeros(count, height, width, dtype=torch.bool)
        label_map = torch.full((height, width), -1)
        for index in range(count):
            first, last = height * index // count, height * (index + 1) // count
            own[index] = (row >= first) & (row < last - 1 + 3 * overlap)
            label_map[own[index]] = index
        masks.append(own)
        maps.append(label_map)
        labels.append(torch.randperm(sizes.classes, generator=generator)[:count])
    if overlap:
        return SegmentTargets.from_masks(masks, labels, size=sizes.size)
    return SegmentTargets.from_label_maps(torch.stack(maps), labels)


def matches(sizes: Sizes, generator: torch.Generator) -> Tensor:
    """A random assignment `[L, B, T]`; -1 beyond an image's segments."""
    most = max(sizes.segments)
    shape = (sizes.layers, sizes.images, most)
    found = torch.full(shape, -1)
    for layer in range(sizes.layers):
        for image, count in enumerate(sizes.segments):
            found[layer, image, :count] = torch.randperm(sizes.queries, generator=generator)[:count]
    return found
