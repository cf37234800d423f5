"""What a look at a data set found: lines, a table of the classes, and pictures of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from maskformer.data import Dataset, DatasetInfo
from maskformer.data.inspection.look import Look
from maskformer.data.sample import Split
from maskformer.inference.segmentation import Segmentation
from maskformer.output.console import LONG_TABLE
from maskformer.output.pictures import save_picture, side_by_side
from maskformer.system.paths import OutputNames
from maskformer.system.text import escape


def sizes_line(split: Split, look: Look) -> str:
    """How many images a split has, and of which sizes."""
    usable = len(look.indices)
    count = f"{usable}" if not look.errors else f"{usable} of {look.looked_at}"
    line = f"{split} data: {count} image{'s' * (look.looked_at != 1)}"
    if look.errors:
        line += " can be used"
    if not usable:
        return line
    empty = int((~look.present.any(1)).sum())
    return f"{line}, {_sizes(look.sizes)}" + (f", {empty} of them without any class" * (empty > 0))


def classes_table(
    info: DatasetInfo, looks: Mapping[Split, Look], *, everything: bool = False
) -> Table:
    """One row per class: in how many images of each split it is, its share of their pixels and, for
    things, how many objects there are.

    Args:
        everything: a long table shows classes that never occur, too.
    """
    table = Table(title="classes", title_justify="left", caption_justify="left")
    table.add_column("class", overflow="fold")
    for split in looks:
        for heading in ("images", "pixels", "objects")[: 3 if info.things else 2]:
            table.add_column(f"{split}\n{heading}", justify="right")
    occurs = np.any([look.present.any(0) for look in looks.values()], axis=0)
    hidden = 0
    for k, name in enumerate(info.classes):
        if info.num_classes > LONG_TABLE and not everything and not occurs[k]:
            hidden += 1
            continue
        cells = [cell for look in looks.values() for cell in _cells(info, look, k)]
        table.add_row(escape(name), *cells)
    voids = [["", _share(look, -1), ""][: 3 if info.things else 2] for look in looks.values()]
    table.add_row("(void)", *(cell for cells in voids for cell in cells))
    if hidden:
        table.caption = f"{hidden} classes that never occur: shown with eval.all_classes=true"
    return table


def write_samples(dataset: Dataset, indices: Sequence[int], folder: Path) -> None:
    """Draws samples with their labels, one PNG each, named after the image.

    Raises:
        OSError: the folder cannot be written.
    """
    names = OutputNames()
    for index in indices:
        sample = dataset[index]
        labels = Segmentation.from_sample(sample)
        titles = (sample.name, "", "labels")
        picture = side_by_side(sample.image, None, labels, dataset.info, titles=titles)
        save_picture(picture, folder / f"{names.take(sample.name.replace('/', '_'))}.png")


def _cells(info: DatasetInfo, look: Look, k: int) -> list[str]:
    """What is said of a class; nothing where it never occurs."""
    images = int(look.present[:, k].sum())
    cells = [f"{images:,}", _share(look, k)] if images else ["", ""]
    if info.things:
        cells.append(f"{look.segments[k]:,}" if images and k in info.things else "")
    return cells


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    (most, times), *_ = sizes.most_common(1)
    if len(sizes) == 1:
        return f"{_size(most)} pixels"
    smallest, *_, largest = sorted(sizes, key=lambda size: size[0] * size[1])
    often = f", most often {_size(most)} ({times:,})" if times > 1 else ""
    return f"{_size(smallest)} to {_size(largest)} pixels in {len(sizes):,} sizes{often}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _share(look: Look, index: int) -> str:
    total = int(look.pixels.sum())
    share = look.pixels[index] / max(total, 1)
    return "<0.01 %" if 0 < share < 1e-4 else f"{share:.2%}".replace("%", " %")
