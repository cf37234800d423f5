"""The one form that every data set has: an image and a partition of it into segments."""

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
    """One object as it was drawn, whether or not others hide it.

    Attributes:
        label: its class.
        runs: COCO's run lengths, `{"size": [H, W], "counts": bytes}`.
        area: in pixels, as the data set states it.
        crowd: it stands for a group of objects.
    """

    label: int
    runs: dict[str, Any]
    area: float
    crowd: bool


@dataclass
class Sample:
    """An image with its segments.

    Attributes:
        image: `[C, H, W]` uint8; RGB where C is 3.
        segments: `[H, W]` int32, index into `labels`; -1 where no segment is (void).
        labels: `[T]` int64, class of each segment.
        crowd: `[T]` bool, segments that stand for a group of objects.
        name: what messages and pictures call it.
        image_id: the data set's own number of the image, or else its name.
        file_name: of the image, relative to the data set's folder; empty where there is no file.
        left_out: how many segments the annotation lists that have no pixel.
        classes: `[H, W]` int64 class of each pixel, -1 for void, where the data set has it apart
            from the segments.
        label_file: the file of its labels, where it has one to itself.
        objects: the things as they were drawn, where the data set knows more than `segments`.
        label_values: the raw values of its labels, where classes are made of such.
    """

    image: Tensor
    segments: Tensor
    labels: Tensor
    crowd: Tensor
    name: str
    image_id: int | str = ""
    file_name: str = ""
    left_out: int = 0
    classes: Tensor | None = None
    label_file: Path | None = None
    objects: tuple[ObjectMask, ...] | None = None
    label_values: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.image_id == "":
            self.image_id = self.name

    @classmethod
    def unlabelled(cls, image: Tensor, name: str, image_id: int | str = "") -> Sample:
        """An image `[C, H, W]` without ground truth."""
        nothing = torch.zeros(0)
        segments = torch.full((1, 1), -1, dtype=torch.int32).expand(image.shape[-2:])
        return cls(image, segments, nothing.long(), nothing.bool(), name, image_id)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])

    def semantic_map(self) -> Tensor:
        """The class of each pixel, `[H, W]` int64, -1 for void. Crowds carry their class."""
        return look_up(self.labels, self.segments) if self.classes is None else self.classes


@dataclass(frozen=True)
class DatasetInfo:
    """What the classes of a data set are.

    Attributes:
        classes: a name per class.
        things: the classes whose objects are told apart; the others are stuff.
        colors: RGB per class.
        category_ids: the data set's own number of each class.

    Raises:
        ValueError: the lengths differ, or a thing is no class.
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
    """Map-style access to raw samples; reading raises `DatasetError` for unusable files."""

    info: DatasetInfo

    @property
    def num_images(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`, and -1 where the index is -1.

    Args:
        values: `[T]`.
        index: integer, any shape, in -1..T-1.
    """
    table = torch.cat([values.new_full((1,), -1), values])
    return table.index_select(0, index.flatten().int() + 1).view(index.shape)


def keep_segments(segments: Tensor, keep: Tensor) -> Tensor:
    """Renumbers a segment map after the segments outside `keep` (`[T]` bool) became void."""
    numbers = torch.where(keep, keep.cumsum(0) - 1, -1).to(segments.dtype)
    return look_up(numbers, segments)


def segment_areas(segments: Tensor, count: int) -> Tensor:
    """Pixels per segment, `[count]` int64."""
    return torch.bincount(segments.flatten() + 1, minlength=count + 1)[1:]


def evenly_spread(total: int, most: int) -> list[int]:
    """Positions in 0..total-1, in order: all of them, or `most` from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int)).tolist()


def check_index(index: int, length: int) -> int:
    """A position in 0..length-1; negative ones count from the end.

    Raises:
        IndexError: outside; this also ends a `for` loop over the data set.
    """
    if not -length <= index < length:
        raise IndexError(f"index {index} is outside a data set of {length} images")
    return index % length


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Puts the image's name before what is wrong with its pixels."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"image {escape(image)}: {error}") from None
