"""Legends with the colours of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from maskformer.data.datasets.class_names import is_called
from maskformer.data.palette import Color
from maskformer.data.sample import DatasetInfo, segment_areas
from maskformer.inference.segmentation import Segmentation
from maskformer.output.fonts import Font, drawable, own_font
from maskformer.system.text import escape

PAPER: Color = (250, 250, 250)
INK: Color = (35, 35, 35)
FRAME: Color = (120, 120, 120)
VOID: Color = (50, 50, 50)
FONT_SIZE = 15
MARGIN = 12
ROWS = 6
LONGEST_NAME = 60
NOTHING = "nothing found"
BACKGROUND = frozenset({"background", "bg", "ignore", "none", "unlabeled", "unlabelled", "void"})
"""Names of classes that stand for the background, without surrounding underscores."""


class Entry(NamedTuple):
    """A class in a legend."""

    name: str
    color: Color
    font: Font


def is_background(name: str) -> bool:
    """Whether a class with this name is the background, whose pixels are not coloured."""
    return is_called(name, *BACKGROUND)


def shows_nothing(segmentation: Segmentation, info: DatasetInfo) -> bool:
    """Whether no pixel belongs to a class other than the background."""
    return _is_nothing(_areas([segmentation], info), info)


def legend(
    shown: Sequence[Segmentation], info: DatasetInfo, width: int, *, scale: float = 1.0
) -> Tensor:
    """Draw a legend with the colours and names of the classes, the largest first, and void last.

    Args:
        shown: the segmentations in the picture. If they show only background, the legend says so.
        info: the names and colours of the classes.
        width: the width in pixels.
        scale: the scale of text and colour swatches.

    Returns:
        `[3, H, width]` uint8, with as many rows as the names need, but at most `ROWS`.
    """
    size = round(FONT_SIZE * scale)
    areas = _areas(shown, info)
    entries = _entries(areas, info, size)
    nothing = _is_nothing(areas, info)
    margin, swatch, row_height, gap = (
        round(length * scale) for length in (MARGIN, FONT_SIZE - 2, FONT_SIZE + 8, 6)
    )
    positions: list[tuple[int, int]] = []
    left, row = margin, 0
    if nothing:
        left += round(own_font(size).getlength(NOTHING)) + 2 * margin
    for entry in entries:
        needed = swatch + gap + round(entry.font.getlength(entry.name)) + margin
        if left + needed > width and left > margin:
            left, row = margin, row + 1
        positions.append((left, row))
        left += needed + round(4 * scale)
    rows = min(row + 1, ROWS)
    sheet = Image.new("RGB", (width, rows * row_height + 2 * margin - round(4 * scale)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if nothing:
        draw.text((margin, margin + swatch / 2), NOTHING, INK, own_font(size), anchor="lm")
    for entry, (left, row) in zip(entries, positions, strict=True):
        if row == ROWS:
            break
        top = margin + row * row_height
        box = (left, top, left + swatch, top + swatch)
        draw.rounded_rectangle(box, round(3 * scale), entry.color, FRAME)
        at = (left + swatch + gap, top + swatch / 2)
        draw.text(at, entry.name, INK, entry.font, anchor="lm")
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def _is_nothing(areas: Tensor, info: DatasetInfo) -> bool:
    found = areas[:-1].nonzero().flatten().tolist()
    return all(is_background(info.classes[k]) for k in found)


def _areas(shown: Sequence[Segmentation], info: DatasetInfo) -> Tensor:
    """Count the pixels of each class and, last, of void."""
    areas = torch.zeros(info.num_classes + 1, dtype=torch.int64)
    for segmentation in shown:
        per_segment = segment_areas(segmentation.segments, len(segmentation.labels))
        areas.index_add_(0, segmentation.labels.cpu().long(), per_segment.cpu())
        if segmentation.covers_all:
            areas[-1] += segmentation.segments.numel() - per_segment.sum().cpu()
    return areas


def _entries(areas: Tensor, info: DatasetInfo, size: int) -> list[Entry]:
    order = areas[:-1].argsort(descending=True, stable=True).tolist()
    entries = [
        _entry(info, k, size) for k in order if areas[k] > 0 and not is_background(info.classes[k])
    ]
    return entries + ([Entry("void", VOID, own_font(size))] if areas[-1] else [])


def _entry(info: DatasetInfo, index: int, size: int) -> Entry:
    """Make the entry of a class with its name, or its number if no font has all characters."""
    name = escape(info.classes[index])
    name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    name, font = drawable(name, f"class {index}", size)
    return Entry(name, info.colors[index], font)
