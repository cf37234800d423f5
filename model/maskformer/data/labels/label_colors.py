"""The colours of classes in palette label files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maskformer.data.image_files.opening import ImageSource
from maskformer.data.label_reader import read_palette
from maskformer.data.sample import DatasetInfo
from maskformer.errors import DatasetError


def with_colors_of_labels(info: DatasetInfo, label_file: ImageSource) -> DatasetInfo:
    """Return the classes with the colours of a label file, if its palette has distinct ones.

    Args:
        info: the classes; `category_ids` are their raw values.
        label_file: any label file of the data set. If it is broken, reading its labels reports it.
    """
    try:
        palette = read_palette(label_file)
    except DatasetError:
        return info
    colors = [palette[value] for value in info.category_ids if 0 <= value < len(palette)]
    if len(set(colors)) < info.num_classes or _is_grey_ramp(colors):
        return info
    return replace(info, colors=tuple(colors))


def _is_grey_ramp(colors: Sequence[tuple[int, int, int]]) -> bool:
    """Whether all colours are grey: programs write such a palette by default, and its colours are
    hard to distinguish.
    """
    return all(red == green == blue for red, green, blue in colors)
