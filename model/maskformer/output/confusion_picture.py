"""A confusion matrix as a picture: rows are the ground truth, columns the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from maskformer.data.palette import Color
from maskformer.output.fonts import Font, drawable, own_font
from maskformer.output.legend import INK, MARGIN, PAPER
from maskformer.system.text import escape

FULL: Color = (20, 60, 130)
GRID: Color = (225, 225, 225)
CAPTION = "row: ground truth   column: prediction   percent of the row's pixels"
LONGEST_NAME = 32
FEW = 25
"""With at most this many classes, cells are large enough for numbers."""


class _Label(NamedTuple):
    """The label of a class."""

    text: str
    font: Font


class _Layout(NamedTuple):
    """The layout of the picture, in pixels."""

    cell: int
    font: Font
    """The font of the numbers in cells."""
    labels: dict[int, _Label]
    left: int
    """Width of the labels of rows; `top` is the height of those of columns."""
    top: int


def draw_confusion(confusion: Tensor, names: Sequence[str]) -> Image.Image:
    """Draw the fractions of the pixels of each class that were predicted as each class.

    Args:
        confusion: `[K + 1, K + 1]`, the number of pixels by true and by predicted class; index K is
            void.
        names: the names of the K classes. Classes without true or predicted pixels are omitted.

    Raises:
        ValueError: the size of the matrix does not match the names.
    """
    if confusion.shape != (len(names) + 1, len(names) + 1):
        raise ValueError(
            f"confusion must be [K + 1, K + 1] for {len(names)} classes, "
            f"got {list(confusion.shape)}"
        )
    counts = confusion.cpu().double()
    occur = (counts.sum(0) + counts.sum(1) > 0).nonzero().flatten().tolist()
    rows = [k for k in occur if k < len(names)]
    shares = counts[rows][:, occur] / counts[rows].sum(1, keepdim=True)
    layout = _lay_out(names, occur)
    size = (
        layout.left + layout.cell * len(occur) + MARGIN,
        layout.top + layout.cell * len(rows) + MARGIN,
    )
    caption = own_font(13)
    sheet = Image.new(
        "RGB", (max(size[0], round(caption.getlength(CAPTION)) + 2 * MARGIN), size[1]), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), CAPTION, INK, caption, anchor="lt")
    _draw_cells(draw, shares, layout)
    for number, k in enumerate(rows):
        middle = layout.top + layout.cell * (number + 0.5)
        label = layout.labels[k]
        draw.text((layout.left - 6, middle), label.text, INK, label.font, anchor="rm")
    for number, k in enumerate(occur):
        _draw_upwards(sheet, layout.labels[k], layout.left + layout.cell * number, layout)
    return sheet


def _lay_out(names: Sequence[str], occur: Sequence[int]) -> _Layout:
    cell, size = (40, 14) if len(occur) <= FEW else (16, 11)
    labels = {k: _label(k, names, size) for k in occur}
    widths = [label.font.getlength(label.text) for label in labels.values()]
    room = round(max(widths, default=0)) + 6
    return _Layout(cell, own_font(size), labels, MARGIN + room, 2 * MARGIN + 13 + room)


def _draw_cells(draw: ImageDraw.ImageDraw, shares: Tensor, layout: _Layout) -> None:
    for row, values in enumerate(shares.tolist()):
        for column, share in enumerate(values):
            left = layout.left + column * layout.cell
            top = layout.top + row * layout.cell
            box = (left, top, left + layout.cell, top + layout.cell)
            if share != share:  # NaN: predicted, but without ground truth
                draw.rectangle(box, PAPER, GRID)
                continue
            # The square root makes small fractions visible.
            draw.rectangle(box, _mix(share**0.5), GRID)
            if layout.cell >= 40 and share >= 0.005:
                middle = (left + layout.cell / 2, top + layout.cell / 2)
                ink = PAPER if share > 0.3 else INK
                draw.text(middle, f"{100 * share:.0f}", ink, layout.font, anchor="mm")


def _draw_upwards(sheet: Image.Image, label: _Label, left: int, layout: _Layout) -> None:
    """Draw a label above its column, rotated to read upwards."""
    strip = Image.new("RGB", (layout.left - MARGIN, layout.cell), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((6, layout.cell / 2), label.text, INK, label.font, anchor="lm")
    strip = strip.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(strip, (left, layout.top - strip.height))


def _mix(share: float) -> Color:
    white = torch.tensor([255.0, 255.0, 255.0])
    red, green, blue = torch.lerp(white, torch.tensor(FULL).float(), share).round().int().tolist()
    return red, green, blue


def _label(index: int, names: Sequence[str], size: int) -> _Label:
    """Return the label of a class: its name, or its number if no font has all characters."""
    name = escape(names[index]) if index < len(names) else "(void)"
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
    return _Label(*drawable(name, f"class {index}", size))
