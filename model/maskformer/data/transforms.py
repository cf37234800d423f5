"""Augmentation for training and resizing for evaluation (paper §4.2)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from maskformer.config.schema import (
    MAX_PIXELS,
    LabelResize,
    PanopticAugmentation,
    SemanticAugmentation,
)
from maskformer.data.color_jitter import distort_color
from maskformer.data.sample import Sample, keep_segments, look_up, naming, segment_areas
from maskformer.errors import DatasetError

PAD_VALUE = 128
"""Value of pixels where a crop extends beyond the image, before normalisation."""

CROP_TRIES = 10

Size = tuple[int, int]


class TrainTransform:
    """The augmentation of a recipe. Crowds become void.

    The result depends only on the sample and the seed; no global random state is read or changed.

    Args:
        config: `Config.data.augmentation`.
    """

    def __init__(self, config: SemanticAugmentation | PanopticAugmentation) -> None:
        self.config = config

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Augment a sample; `seed` is any integer.

        Raises:
            DatasetError: the image is so narrow that the resized one would not fit into memory.
        """
        rng = random.Random(seed)
        sample = _drop(sample, ~sample.crowd)
        with naming(sample.name):
            if isinstance(self.config, SemanticAugmentation):
                sample = _semantic(sample, self.config, rng)
            else:
                sample = _panoptic(sample, self.config, rng)
        if self.config.keep_empty:
            return sample
        return _drop(sample, segment_areas(sample.segments, len(sample.labels)) > 0)


class EvalTransform:
    """Resizes an image bit-identically to Pillow. The ground truth keeps its size.

    Args:
        short_side: the short side of the result; None keeps the size.
        max_side: the limit of the long side, which takes precedence over `short_side`.
    """

    def __init__(self, short_side: int | None, max_side: int | None = None) -> None:
        self.short_side = short_side
        self.max_side = max_side

    def __call__(self, image: Tensor) -> Tensor:
        """`[C, H, W]` uint8 to `[C, H', W']` uint8.

        Raises:
            DatasetError: as `resized_size`.
        """
        if self.short_side is None:
            return image
        height, width = image.shape[-2:]
        size = resized_size((height, width), self.short_side, self.max_side)
        return image if size == (height, width) else _resize_with_pillow(image, size)


def resized_size(size: Size, short_side: int, max_side: int | None) -> Size:
    """Return height and width after resizing the short side to `short_side`.

    If the long side would exceed `max_side`, the long side is resized to that instead. Sides are
    rounded half up.

    Raises:
        DatasetError: the result would have more than `MAX_PIXELS`, because the image is narrow.
    """
    height, width = size
    scale = short_side / min(size)
    new_height, new_width = (
        (float(short_side), width * scale)
        if height < width
        else (height * scale, float(short_side))
    )
    longest = max(new_height, new_width)
    if max_side is not None and longest > max_side:
        scale = max_side / longest  # multiply by a factor, to round like the official code
        new_height, new_width = new_height * scale, new_width * scale
    height_out, width_out = max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)
    if height_out * width_out > MAX_PIXELS:
        raise DatasetError(
            f"{width}x{height} pixels would become {width_out}x{height_out} with a short side of "
            f"{short_side}, expected at most {MAX_PIXELS:,} pixels: limit the long side (max_side) "
            "or remove the image"
        )
    return height_out, width_out


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Resize uint8 images with bilinear interpolation and antialiasing, four times as fast as
    Pillow.

    A thousandth of the values differ from Pillow's, by one level. Training is limited by the
    preparation of images, and Pillow would make the augmentation of ADE20K a quarter slower.
    """
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_segments(segments: Tensor, size: Size, how: LabelResize) -> Tensor:
    """Resize a segment map by nearest neighbours, sampled at the centre of each pixel or at its
    upper left corner (`floor`).
    """
    rows, columns = _nearest(segments.shape, size, how)
    return _gather(segments, rows, columns)


def _nearest(old: Sequence[int], new: Size, how: LabelResize) -> tuple[Tensor, Tensor]:
    """Return the source row of each row, and the source column of each column, of a resized map."""
    mode = "nearest-exact" if how == "center" else "nearest"
    rows, columns = (
        interpolate(torch.arange(side, dtype=torch.float64)[None, None], wanted, mode=mode)
        for side, wanted in zip(old, new, strict=True)
    )
    return rows.flatten().long(), columns.flatten().long()


def _gather(segments: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return segments.index_select(0, rows).index_select(1, columns)


def _resize_with_pillow(image: Tensor, size: Size) -> Tensor:
    if len(image) != 3:  # Pillow would take four bands for RGBA, whose colours it weights by alpha
        return torch.stack([torch.from_numpy(_resized(band, size)) for band in image])
    resized = _resized(image.permute(1, 2, 0).contiguous(), size)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def _resized(pixels: Tensor, size: Size) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels.numpy())
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _semantic(sample: Sample, config: SemanticAugmentation, rng: random.Random) -> Sample:
    short = rng.choice(config.short_sides)
    size = resized_size(sample.size, short, config.max_side)
    sample = _random_crop(sample, size, config, rng)
    if config.color:
        sample = replace(sample, image=distort_color(sample.image, rng))
    if config.flip and rng.random() < 0.5:
        sample = _flip(sample)
    return _pad(sample, config.crop) if config.pad_to_crop else sample


def _panoptic(sample: Sample, config: PanopticAugmentation, rng: random.Random) -> Sample:
    if config.flip and rng.random() < 0.5:
        sample = _flip(sample)
    if rng.random() < 0.5:
        size = resized_size(sample.size, rng.choice(config.crop_short_sides), None)
        sample = _resize(sample, size, config.label_resize)
        low, high = config.crop_range
        height, width = (rng.randint(min(side, low), min(side, high)) for side in sample.size)
        sample = _crop(sample, *_corner(sample.size, (height, width), rng), height, width)
    short = rng.choice(config.short_sides)
    size = resized_size(sample.size, short, config.max_side)
    return _resize(sample, size, config.label_resize)


def _random_crop(
    sample: Sample, size: Size, config: SemanticAugmentation, rng: random.Random
) -> Sample:
    """Resize and crop. Up to `CROP_TRIES` crops are drawn, until one has several classes of which
    none covers `single_category_max_area` or more of the labelled pixels. Of the segments, only
    the crop is resized.
    """
    image = sample.image if size == sample.size else resize_image(sample.image, size)
    rows, columns = _nearest(sample.size, size, config.label_resize)
    height, width = min(size[0], config.crop[0]), min(size[1], config.crop[1])
    for _ in range(CROP_TRIES):
        top, left = _corner(size, (height, width), rng)
        segments = _gather(sample.segments, rows[top : top + height], columns[left : left + width])
        if config.single_category_max_area == 1.0:
            break
        classes = look_up(sample.labels, segments)
        counts = torch.bincount(classes[classes >= 0])
        if (counts > 0).sum() > 1 and counts.max() < counts.sum() * config.single_category_max_area:
            break
    image = F.crop(image, top, left, height, width).contiguous()  # planar: faster arithmetic
    return replace(sample, image=image, segments=segments)


def _corner(whole: Size, size: Size, rng: random.Random) -> Size:
    height, width = whole
    return rng.randint(0, height - size[0]), rng.randint(0, width - size[1])


def _crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    return replace(
        sample,
        image=F.crop(sample.image, top, left, height, width),
        segments=F.crop(sample.segments, top, left, height, width),
    )


def _resize(sample: Sample, size: Size, labels: LabelResize) -> Sample:
    if size == sample.size:
        return sample
    return replace(
        sample,
        image=resize_image(sample.image, size),
        segments=resize_segments(sample.segments, size, labels),
    )


def _flip(sample: Sample) -> Sample:
    return replace(
        sample,
        image=F.horizontal_flip(sample.image),
        segments=F.horizontal_flip(sample.segments),
    )


def _pad(sample: Sample, size: Size) -> Sample:
    """Pad to `size` at the right and bottom."""
    height, width = sample.size
    padding = [0, 0, max(size[1] - width, 0), max(size[0] - height, 0)]
    if not any(padding):
        return sample
    return replace(
        sample,
        image=F.pad(sample.image, padding, fill=PAD_VALUE),
        segments=F.pad(sample.segments[None], padding, fill=-1)[0],
    )


def _drop(sample: Sample, keep: Tensor) -> Sample:
    """Set the segments outside `keep` to void."""
    if bool(keep.all()):
        return sample
    return replace(
        sample,
        segments=keep_segments(sample.segments, keep),
        labels=sample.labels[keep],
        crowd=sample.crowd[keep],
    )
