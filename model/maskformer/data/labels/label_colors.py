"""The colours that palette label files give their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maskformer.data.image_files.opening import ImageSource
from maskformer.data.label_reader import read_palette
from maskformer.data.sample import DatasetInfo
from maskformer.errors import DatasetError


def with_colors_of_labels(info: DatasetInfo, label_file: ImageSource) -> DatasetInfo:
    """The classes in the colours of a label file, if it has a palette that tells them apart.

    Args:
        info: `category_ids` are the raw values of the classes.
        label_file: one of the data set; a broken one is left to whoever reads the labels.
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
    """Whether it is what programs write where nobody chose colours: hardly to be told apart."""
    return all(red == green == blue for red, green, blue in colors)
