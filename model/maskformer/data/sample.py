"""Samples, the common form of all data sets: an image and its partition into segments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from maskformer.errors import DatasetError
from maskformer.system.text import escape

Split = Literal["train", "val"]


class ObjectMask(NamedTuple):
    """The full mask of one annotated object, including parts that other objects cover.

    Attributes:
        label: the class.
        runs: the mask in COCO's run-length encoding, `{"size": [H, W], "counts": text}`.
        area: the area in pixels that the data set states.
        crowd: whether it is a crowd, a group of objects.
    """

    label: int
    runs: dict[str, Any]
    area: float
    crowd: bool


@dataclass
class Sample:
    """An image with its segments.

    Attributes:
        image: `[C, H, W]` uint8; RGB if C is 3.
        segments: `[H, W]` int32, the segment of each pixel as an index into `labels`; -1 for void.
        labels: `[T]` int64, the class of each segment.
        crowd: `[T]` bool, whether each segment is a crowd, a group of objects.
        name: the name of the image in messages and pictures.
        image_id: the data set's id of the image; by default its name.
        file_name: the path of the image relative to the data set's folder; empty if it is not a
            file.
        empty_segments: the number of annotated segments that have no pixel.
        classes: `[H, W]` int64, the class of each pixel, -1 for void; only if the data set has
            semantic labels besides the segments.
        label_file: the label file, if the image has one of its own.
        objects: the full masks of the things, if the data set has them besides `segments`.
        label_values: the raw label values that occur, if the classes are derived from such values.
    """

    image: Tensor
    segments: Tensor
    labels: Tensor
    crowd: Tensor
    name: str
    image_id: int | str = ""
    file_name: str = ""
    empty_segments: int = 0
    classes: Tensor | None = None
    label_file: Path | None = None
    objects: tuple[ObjectMask, ...] | None = None
    label_values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.image_id == "":
            self.image_id = self.name

    @classmethod
    def unlabelled(cls, image: Tensor, name: str, image_id: int | str = "") -> Sample:
        """Make a sample of an image `[C, H, W]` without ground truth."""
        nothing = torch.zeros(0)
        segments = torch.full((1, 1), -1, dtype=torch.int32).expand(image.shape[-2:])
        return cls(image, segments, nothing.long(), nothing.bool(), name, image_id)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])

    def semantic_map(self) -> Tensor:
        """Return the class of each pixel, `[H, W]` int64, -1 for void. Crowds have their class."""
        return look_up(self.labels, self.segments) if self.classes is None else self.classes


@dataclass(frozen=True)
class DatasetInfo:
    """The classes of a data set.

    Attributes:
        classes: the name of each class.
        things: the indices of the thing classes; the others are stuff.
        colors: the RGB colour of each class.
        category_ids: the data set's id of each class.

    Raises:
        ValueError: the lengths differ, or an index in `things` is out of range.
    """

    classes: tuple[str, ...]
    things: frozenset[int]
    colors: tuple[tuple[int, int, int], ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.classes), len(self.colors), len(self.category_ids)}
        if len(sizes) != 1:
            raise ValueError(
                "classes, colors and category_ids must have one entry per class, got "
                f"{len(self.classes)}, {len(self.colors)} and {len(self.category_ids)}"
            )
        outside = sorted(k for k in self.things if not 0 <= k < len(self.classes))
        if outside:
            raise ValueError(f"things must lie in 0..{len(self.classes) - 1}, got {outside}")

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class Dataset(Protocol):
    """A map-style data set of raw samples; reading an unusable file raises `DatasetError`.

    A data set may also have these attributes and methods, which are used if they exist:

        files               for each image, a tuple of its files, the image first
        shards              the archives that contain these files
        notes               lines on files that were skipped, and why
        explain             as in `LabelMaps`
        check_label_values  as in `LabelMaps`
    """

    info: DatasetInfo

    @property
    def num_images(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """Return `values[index]`, and -1 where the index is -1.

    Args:
        values: `[T]`.
        index: integers in -1..T-1, of any shape.
    """
    table = torch.cat([values.new_full((1,), -1), values])
    return table.index_select(0, index.flatten().int() + 1).view(index.shape)


def keep_segments(segments: Tensor, keep: Tensor) -> Tensor:
    """Set the segments outside `keep` (`[T]` bool) to void in a segment map `[H, W]`, and renumber
    the others.
    """
    numbers = torch.where(keep, keep.cumsum(0) - 1, -1).to(segments.dtype)
    return look_up(numbers, segments)


def segment_areas(segments: Tensor, count: int) -> Tensor:
    """Count the pixels of each segment, `[count]` int64."""
    return torch.bincount(segments.flatten() + 1, minlength=count + 1)[1:]


def evenly_spread(total: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced indices in 0..total-1, including both ends."""
    return np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(int)).tolist()


def check_index(index: int, length: int) -> int:
    """Return an index in 0..length-1; a negative index counts from the end.

    Raises:
        IndexError: the index is out of range, which also ends a `for` loop over the data set.
    """
    if not -length <= index < length:
        raise IndexError(f"index {index} is outside a data set of {length} images")
    return index % length


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Prefix the message of a `DatasetError` in the block with the name of the image."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"image {escape(image)}: {error}") from None
