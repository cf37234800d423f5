"""Pictures of segmentations: overlays with outlines, side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from maskformer.data.palette import Color
from maskformer.data.sample import DatasetInfo
from maskformer.inference.segmentation import Segmentation
from maskformer.output.fonts import drawable
from maskformer.output.legend import (
    FONT_SIZE,
    INK,
    MARGIN,
    NOTHING,
    PAPER,
    is_background,
    legend,
    shows_nothing,
)
from maskformer.system.text import escape
from maskformer.system.writing import replace_file

PANEL_SIDE = (360, 720)
"""Limits of the longer side of a panel in pixels. Images outside of them are resized to the nearer
limit.
"""

LEGIBLE_SIDE = 1200
"""If the longer side of a picture exceeds this number of pixels, its legend is enlarged with it."""
PIXELS_AT_ONCE = 1 << 20
"""Number of pixels that are drawn at a time, to limit the memory for floating-point values."""
ENCODING = {"JPEG": {"quality": 90}, "WEBP": {"quality": 90}, "PNG": {"compress_level": 2}}
"""Options for pictures. PNGs are written 3.5 times as fast as with Pillow's default level 6, and
are 4 to 8 % larger.
"""
MAP_ENCODING = {"compress_level": 4}
"""Options for PNGs with few values. With a lower level, they would be a fifth larger."""

OUTLINE: Color = (255, 255, 255)
LEVELS = 256
"""Number of values of an 8-bit channel."""
VOID_SHADE = 0.3
SHADES = (0.0, 0.35, -0.3, 0.18, -0.15, 0.5)
"""How much the colours of objects of one class are moved towards white (positive) or black."""


def as_rgb(image: Tensor) -> Tensor:
    """Return the first three bands of `[C, H, W]` as `[3, H, W]`, or the first one repeated if
    there are fewer.
    """
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def overlay(
    image: Tensor, segmentation: Segmentation, info: DatasetInfo, *, opacity: float = 0.6
) -> Tensor:
    """Draw the segments of an image over it, with outlines. Void is darkened, and background
    classes are not coloured.

    Args:
        image: `[C, H, W]` uint8.
        segmentation: the segments, of the same size.
        info: the classes and their colours.
        opacity: the opacity of the colours, 0..1.

    Returns:
        `[3, H, W]` uint8.

    Raises:
        ValueError: the sizes differ, or a class is out of range.
    """
    segments, labels = segmentation.segments.cpu(), segmentation.labels.cpu()
    _check_size("segmentation", segmentation, image)
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < info.num_classes):
        raise ValueError(
            f"segmentation must hold classes in 0..{info.num_classes - 1}, got {labels.tolist()}"
        )
    image = as_rgb(image)
    void = 1 - VOID_SHADE if segmentation.covers_all else 0.0
    weights = [0.0 if is_background(info.classes[k]) else opacity for k in labels.tolist()]
    weight = torch.tensor([void, *weights])
    colors = torch.tensor([(0, 0, 0), *segment_colors(labels.tolist(), info)]).T
    outline = torch.tensor(OUTLINE)[:, None, None].expand(3, 1, LEVELS)
    # Lookup tables from each value of each channel to its result: in void, in each segment, and in
    # outlines.
    drawn = torch.arange(LEVELS) * (1 - weight[:, None]) + (colors * weight)[..., None]
    tables = torch.cat([drawn.round(), outline], 1).to(torch.uint8).flatten(1)
    edges = _edges(segments)
    picture = torch.empty(image.shape, dtype=torch.uint8)
    rows = max(PIXELS_AT_ONCE // image.shape[-1], 1)
    for start in range(0, image.shape[-2], rows):
        band = slice(start, start + rows)
        kind = segments[band].int().add(1).masked_fill_(edges[band], len(weight)).mul_(LEVELS)
        for channel, table in enumerate(tables):
            index = (kind + image[channel, band].cpu()).flatten()
            picture[channel, band] = table.index_select(0, index).view(kind.shape)
    return picture


def side_by_side(
    image: Tensor,
    ground_truth: Segmentation | None,
    prediction: Segmentation,
    info: DatasetInfo,
    *,
    titles: tuple[str, str, str] = ("image", "ground truth", "prediction"),
) -> Tensor:
    """Draw the image, the ground truth (if given) and the prediction side by side, above a legend.

    Args:
        image: `[C, H, W]` uint8.
        ground_truth: the ground truth, of the same size.
        prediction: the prediction, of the same size.
        info: the classes and their colours.
        titles: the titles of the three panels.

    Returns:
        `[3, H', W']` uint8; images are resized to the limits `PANEL_SIDE`.

    Raises:
        ValueError: the sizes differ, or a class is out of range.
    """
    size = _panel_size(int(image.shape[-2]), int(image.shape[-1]))
    scaled = _resize_image(as_rgb(image), size)
    panels = [(titles[0], scaled)]
    shown = []
    for title, segmentation in ((titles[1], ground_truth), (titles[2], prediction)):
        if segmentation is None:
            continue
        _check_size(title, segmentation, image)
        drawn = _scale(segmentation, size)
        if segmentation is prediction and shows_nothing(segmentation, info):
            title = f"{title}: {NOTHING}"
        panels.append((title, overlay(scaled, drawn, info)))
        shown.append(drawn)
    picture = _arrange(panels)
    return torch.cat([picture, legend(shown, info, picture.shape[-1])], dim=1)


def overlay_with_legend(
    image: Tensor, segmentation: Segmentation, info: DatasetInfo, *, opacity: float = 0.6
) -> Tensor:
    """Draw an `overlay` above a legend, `[3, H', W']` uint8. Small images are enlarged.

    If there is only background, the legend says so.

    Raises:
        ValueError: as in `overlay`.
    """
    _check_size("segmentation", segmentation, image)  # before both are enlarged to one size
    if max(image.shape[-2:]) < PANEL_SIDE[0]:
        size = _panel_size(int(image.shape[-2]), int(image.shape[-1]))
        image, segmentation = _resize_image(as_rgb(image), size), _scale(segmentation, size)
    picture = overlay(image, segmentation, info, opacity=opacity)
    scale = max(max(picture.shape[-2:]) / LEGIBLE_SIDE, 1.0)
    names = legend([segmentation], info, max(picture.shape[-1], PANEL_SIDE[0]), scale=scale)
    missing = names.shape[-1] - picture.shape[-1]
    if missing:
        picture = F.pad(picture, (0, missing), value=PAPER[0])
    return torch.cat([picture, names], dim=1)


def _check_size(name: str, segmentation: Segmentation, image: Tensor) -> None:
    if segmentation.segments.shape != image.shape[-2:]:
        raise ValueError(
            f"{name} must have the size of the image {list(image.shape[-2:])}, "
            f"got {list(segmentation.segments.shape)}"
        )


def save_picture(picture: Tensor, file: Path) -> None:
    """Write `[3, H, W]` uint8 as an image file, atomically. The suffix determines the format.

    Raises:
        OSError: the file cannot be written; an existing one is kept.
    """
    form = Image.registered_extensions()[file.suffix.lower()]
    _save(to_pillow(picture), file, form, ENCODING.get(form, {}))


def save_map(image: Image.Image, file: Path) -> None:
    """Write an image with few values as PNG, atomically."""
    _save(image, file, "PNG", MAP_ENCODING)


def _save(image: Image.Image, file: Path, form: str, options: dict[str, int]) -> None:
    replace_file(file, lambda partial: image.save(partial, format=form, **options))


def segment_colors(labels: Sequence[int], info: DatasetInfo) -> list[Color]:
    """Return a colour per segment: that of its class, made lighter or darker for the second and
    further objects of a thing class.
    """
    counts: dict[int, int] = {}
    colors = []
    for label in labels:
        number = counts.get(label, 0) if label in info.things else 0
        counts[label] = number + 1
        shade = SHADES[number % len(SHADES)]
        target = 255 if shade > 0 else 0
        red, green, blue = (round(c + (target - c) * abs(shade)) for c in info.colors[label])
        colors.append((red, green, blue))
    return colors


def _edges(segments: Tensor) -> Tensor:
    """Return which pixels have a right or lower neighbour in another segment."""
    edges = torch.zeros(segments.shape, dtype=torch.bool)
    edges[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edges[:-1] |= segments[:-1] != segments[1:]
    return edges


def _panel_size(height: int, width: int) -> tuple[int, int]:
    low, high = PANEL_SIDE
    longest = max(height, width)
    scale = min(max(longest, low), high) / longest
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    return _from_pillow(to_pillow(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def to_pillow(image: Tensor) -> Image.Image:
    """Convert `[3, H, W]` uint8 to an image of Pillow."""
    # Pillow interleaves channels ten times as fast as a strided copy.
    bands = [Image.fromarray(np.ascontiguousarray(band.numpy())) for band in image.cpu()]
    return Image.merge("RGB", bands)


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _scale(segmentation: Segmentation, size: tuple[int, int]) -> Segmentation:
    height, width = segmentation.segments.shape
    rows = torch.arange(size[0]) * height // size[0]
    columns = torch.arange(size[1]) * width // size[1]
    return replace(segmentation, segments=segmentation.segments.cpu()[rows][:, columns])


def _arrange(panels: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Arrange panels in a row, each below its title, which is cut off at the width of the panel."""
    height, width = panels[0][1].shape[-2:]
    top = FONT_SIZE + 2 * MARGIN
    sheet = Image.new("RGB", ((width + MARGIN) * len(panels) + MARGIN, top + height), PAPER)
    for column, (title, panel) in enumerate(panels):
        left = MARGIN + column * (width + MARGIN)
        text, font = drawable(escape(title), "image", FONT_SIZE)
        strip = Image.new("RGB", (width, top), PAPER)
        ImageDraw.Draw(strip).text((0, top - MARGIN / 2), text, INK, font, anchor="ls")
        sheet.paste(strip, (left, 0))
        sheet.paste(to_pillow(panel), (left, top))
    return _from_pillow(sheet)
