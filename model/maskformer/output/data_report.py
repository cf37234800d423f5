"""The report of `maskformer data check`: sizes, a table of the classes, and pictures of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from maskformer.data import Dataset, DatasetInfo
from maskformer.data.inspection.scan import Scan
from maskformer.data.sample import Split
from maskformer.inference.segmentation import Segmentation
from maskformer.output.console import LONG_TABLE
from maskformer.output.pictures import save_picture, side_by_side
from maskformer.system.paths import OutputNames
from maskformer.system.text import escape


def sizes_line(split: Split, scan: Scan) -> str:
    """Return a line with the number of images of a split and their sizes."""
    usable = len(scan.indices)
    count = f"{usable}" if not scan.errors else f"{usable} of {scan.num_read}"
    line = f"{split} data: {count} image{'s' * (scan.num_read != 1)}"
    if scan.errors:
        line += " can be used"
    if not usable:
        return line
    empty = int((~scan.present.any(1)).sum())
    return f"{line}, {_sizes(scan.sizes)}" + (f", {empty} of them without any class" * (empty > 0))


def classes_table(
    info: DatasetInfo, scans: Mapping[Split, Scan], *, everything: bool = False
) -> Table:
    """Return a table with one row per class: for each split, the number of images with the class,
    its share of the pixels and, for things, the number of objects.

    Args:
        info: the classes.
        scans: the statistics of each split.
        everything: whether a long table also shows classes that never occur.
    """
    table = Table(title="classes", title_justify="left", caption_justify="left")
    table.add_column("class", overflow="fold")
    for split in scans:
        for heading in ("images", "pixels", "objects")[: 3 if info.things else 2]:
            table.add_column(f"{split}\n{heading}", justify="right")
    occurs = np.any([scan.present.any(0) for scan in scans.values()], axis=0)
    hidden = 0
    for k, name in enumerate(info.classes):
        if info.num_classes > LONG_TABLE and not everything and not occurs[k]:
            hidden += 1
            continue
        cells = [cell for scan in scans.values() for cell in _cells(info, scan, k)]
        table.add_row(escape(name), *cells)
    voids = [["", _share(scan, -1), ""][: 3 if info.things else 2] for scan in scans.values()]
    table.add_row("(void)", *(cell for cells in voids for cell in cells))
    if hidden:
        table.caption = f"{hidden} classes that never occur: shown with eval.all_classes=true"
    return table


def write_samples(dataset: Dataset, indices: Sequence[int], folder: Path) -> None:
    """Write a PNG for each sample with its labels drawn over, named after the image.

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


def _cells(info: DatasetInfo, scan: Scan, k: int) -> list[str]:
    """Return the cells of a class for one split; they are empty if it never occurs."""
    images = int(scan.present[:, k].sum())
    cells = [f"{images:,}", _share(scan, k)] if images else ["", ""]
    if info.things:
        cells.append(f"{scan.segments[k]:,}" if images and k in info.things else "")
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


def _share(scan: Scan, index: int) -> str:
    total = int(scan.pixels.sum())
    share = scan.pixels[index] / max(total, 1)
    return "<0.01 %" if 0 < share < 1e-4 else f"{share:.2%}".replace("%", " %")
