"""Pictures of segmentations: overlays with outlines, side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from maskformer.data.palette import Color
from maskformer.data.sample import DatasetInfo, segment_areas
from maskformer.inference.segmentation import Segmentation
from maskformer.system.text import escape
from maskformer.system.writing import replace_file

PANEL_SIDE = (360, 720)
"""Bounds for the longer side of a drawn image, in pixels; others are scaled to the nearer one."""

PAPER: Color = (250, 250, 250)
INK: Color = (35, 35, 35)
OUTLINE: Color = (255, 255, 255)
VOID: Color = (50, 50, 50)
VOID_SHADE = 0.3
MARGIN = 12
FONT_SIZE = 15
LEGEND_ROWS = 6
LONGEST_NAME = 60
SHADES = (0.0, 0.35, -0.3, 0.18, -0.15, 0.5)
"""How far objects of one class are moved towards white (positive) or black."""


def as_rgb(image: Tensor) -> Tensor:
    """The first three bands of `[C, H, W]`, or the first alone where there are fewer, as
    `[3, H, W]`.
    """
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def overlay(
    image: Tensor, segmentation: Segmentation, info: DatasetInfo, *, opacity: float = 0.6
) -> Tensor:
    """The image under the colours of its segments. Void is darkened, segments are outlined.

    Args:
        image: `[C, H, W]` uint8.
        segmentation: of the same size.
        info: classes and colours.
        opacity: of the colours, 0..1.

    Returns:
        `[3, H, W]` uint8.

    Raises:
        ValueError: the sizes differ or a class has no name.
    """
    segments, labels = segmentation.segments.cpu(), segmentation.labels.cpu()
    if segments.shape != image.shape[-2:]:
        raise ValueError(
            f"segmentation must have the size of the image {list(image.shape[-2:])}, "
            f"got {list(segments.shape)}"
        )
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < info.num_classes):
        raise ValueError(
            f"segmentation must hold classes in 0..{info.num_classes - 1}, got {labels.tolist()}"
        )
    image = as_rgb(image)
    colors = torch.tensor(segment_colors(labels.tolist(), info), dtype=torch.float32)
    tint = torch.cat([colors.reshape(-1, 3), torch.zeros(1, 3)])[segments.long()]
    void = 1 - VOID_SHADE if segmentation.covers_all else 0.0
    weight = torch.where(segments >= 0, opacity, void)[..., None]
    pixels = image.cpu().permute(1, 2, 0).float() * (1 - weight) + tint * weight
    pixels[_edges(segments)] = torch.tensor(OUTLINE, dtype=torch.float32)
    return pixels.round().to(torch.uint8).permute(2, 0, 1).contiguous()


def side_by_side(
    image: Tensor,
    ground_truth: Segmentation | None,
    prediction: Segmentation,
    info: DatasetInfo,
    *,
    titles: tuple[str, str, str] = ("image", "ground truth", "prediction"),
) -> Tensor:
    """Image, ground truth (if there is any) and prediction next to each other, over a legend.

    Args:
        image: `[C, H, W]` uint8.
        ground_truth: of the same size.
        prediction: of the same size.
        info: classes and colours.
        titles: above the three panels.

    Returns:
        `[3, H', W']` uint8, scaled so that small images can be seen and large ones fit.

    Raises:
        ValueError: the sizes differ or a class has no name.
    """
    size = _panel_size(int(image.shape[-2]), int(image.shape[-1]))
    scaled = _resize_image(as_rgb(image), size)
    panels = [(titles[0], scaled)]
    shown = []
    for title, segmentation in ((titles[1], ground_truth), (titles[2], prediction)):
        if segmentation is None:
            continue
        if segmentation.segments.shape != image.shape[-2:]:
            raise ValueError(
                f"{title} must have the size of the image {list(image.shape[-2:])}, "
                f"got {list(segmentation.segments.shape)}"
            )
        drawn = _scale(segmentation, size)
        panels.append((title, overlay(scaled, drawn, info)))
        shown.append(drawn)
    picture = _arrange(panels)
    return torch.cat([picture, _legend(_entries(shown, info), picture.shape[-1])], dim=1)


def overlay_with_legend(
    image: Tensor, segmentation: Segmentation, info: DatasetInfo, *, opacity: float = 0.6
) -> Tensor:
    """`overlay` over a legend, `[3, H', W']` uint8; small images are enlarged."""
    if max(image.shape[-2:]) < PANEL_SIDE[0]:
        size = _panel_size(int(image.shape[-2]), int(image.shape[-1]))
        image, segmentation = _resize_image(as_rgb(image), size), _scale(segmentation, size)
    picture = overlay(image, segmentation, info, opacity=opacity)
    legend = _legend(_entries([segmentation], info), max(picture.shape[-1], PANEL_SIDE[0]))
    missing = legend.shape[-1] - picture.shape[-1]
    return torch.cat([F.pad(picture, (0, missing), value=PAPER[0]), legend], dim=1)


def save_picture(picture: Tensor, file: Path) -> None:
    """Writes `[3, H, W]` uint8 as an image file that is complete or absent; the suffix decides the
    format.

    Raises:
        OSError: the file cannot be written; an old one stays.
    """
    save_image(_to_pillow(picture), file)


def save_image(image: Image.Image, file: Path) -> None:
    """`save_picture` for an image of Pillow."""
    form = Image.registered_extensions()[file.suffix.lower()]
    replace_file(file, lambda partial: image.save(partial, format=form))


def segment_colors(labels: Sequence[int], info: DatasetInfo) -> list[Color]:
    """A colour per segment: that of its class, lighter or darker for further things of it."""
    seen: dict[int, int] = {}
    colors = []
    for label in labels:
        number = seen.get(label, 0) if label in info.things else 0
        seen[label] = number + 1
        shade = SHADES[number % len(SHADES)]
        target = 255 if shade > 0 else 0
        red, green, blue = (round(c + (target - c) * abs(shade)) for c in info.colors[label])
        colors.append((red, green, blue))
    return colors


def _edges(segments: Tensor) -> Tensor:
    """Pixels whose right or lower neighbour belongs to another segment."""
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
    return _from_pillow(_to_pillow(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _scale(segmentation: Segmentation, size: tuple[int, int]) -> Segmentation:
    height, width = segmentation.segments.shape
    rows = torch.arange(size[0]) * height // size[0]
    columns = torch.arange(size[1]) * width // size[1]
    return replace(segmentation, segments=segmentation.segments.cpu()[rows][:, columns])


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _arrange(panels: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Panels in a row, each under its title."""
    height, width = panels[0][1].shape[-2:]
    top = FONT_SIZE + 2 * MARGIN
    sheet = Image.new("RGB", ((width + MARGIN) * len(panels) + MARGIN, top + height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, (title, panel) in enumerate(panels):
        left = MARGIN + column * (width + MARGIN)
        draw.text((left, top - MARGIN / 2), title, INK, _font(), anchor="ls")
        sheet.paste(_to_pillow(panel), (left, top))
    return _from_pillow(sheet)


def _entries(shown: Sequence[Segmentation], info: DatasetInfo) -> list[tuple[str, Color]]:
    """The classes drawn, the largest first, then void."""
    areas = torch.zeros(info.num_classes + 1, dtype=torch.int64)
    for segmentation in shown:
        per_segment = segment_areas(segmentation.segments.long(), len(segmentation.labels))
        areas.index_add_(0, segmentation.labels.cpu().long(), per_segment)
        if segmentation.covers_all:
            areas[-1] += int((segmentation.segments < 0).sum())
    void = int(areas[-1])
    order = areas[:-1].argsort(descending=True, stable=True).tolist()
    entries = [(info.classes[k], info.colors[k]) for k in order if areas[k] > 0]
    entries = [(_legible(name), color) for name, color in entries]
    return entries + ([("void", VOID)] if void else [])


def _legible(name: str) -> str:
    name = escape(name)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def _legend(entries: Sequence[tuple[str, Color]], width: int) -> Tensor:
    """Swatches and names, in as many rows as they need, at most `LEGEND_ROWS`."""
    font, swatch, row_height = _font(), FONT_SIZE - 2, FONT_SIZE + 8
    positions: list[tuple[int, int]] = []
    left, row = MARGIN, 0
    for name, _ in entries:
        needed = swatch + 6 + round(font.getlength(name)) + MARGIN
        if left + needed > width and left > MARGIN:
            left, row = MARGIN, row + 1
        positions.append((left, row))
        left += needed + 4
    rows = min(row + 1, LEGEND_ROWS)
    sheet = Image.new("RGB", (width, rows * row_height + 2 * MARGIN - 4), PAPER)
    draw = ImageDraw.Draw(sheet)
    for (name, color), (left, row) in zip(entries, positions, strict=True):
        if row == LEGEND_ROWS:
            break
        top = MARGIN + row * row_height
        draw.rounded_rectangle((left, top, left + swatch, top + swatch), 3, color, (120, 120, 120))
        middle = top + swatch / 2
        draw.text((left + swatch + 6, middle), name, INK, font, anchor="lm")
    return _from_pillow(sheet)
