"""Reads a data set before the first training step, so that the loss sees no garbage."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.config.schema import DataConfig, EvalConfig, FolderConfig, FolderSplit
from maskformer.data.progress import track
from maskformer.data.sample import Dataset, DatasetInfo, evenly_spread
from maskformer.errors import ConfigError, DatasetError, LabelValueError

SHOWN = 5
VOID_SHARE = 0.5


@dataclass(frozen=True)
class _Look:
    """What was seen of one split.

    Attributes:
        pixels: per class, void last, `[K + 1]`.
        left_out: listed segments without a pixel.
        complete: all images were read.
    """

    pixels: NDArray[np.int64]
    left_out: int
    complete: bool


def check_dataset(dataset: Dataset, *, limit: int = 500, title: str = "Checking data") -> list[str]:
    """Reads all images, or `limit` of them evenly spread, and raises if any cannot be used.

    The same checks run whenever a sample is read, so what a partial look misses is still found.

    Args:
        dataset: one split.
        limit: how many images to read at most.
        title: of the progress bar.

    Returns:
        Warnings, one sentence each: classes that never occur, mostly void pixels, raw values that
        look like a mistake, listed segments without a pixel.

    Raises:
        DatasetError: what is wrong, with the files, the likely cause and the setting to change.
    """
    return _warnings(dataset, _read(dataset, limit, title))


def check_splits(train: Dataset, val: Dataset, *, limit: int = 500) -> list[str]:
    """Checks both splits as `check_dataset` does, and whether they show the same classes.

    Returns:
        Warnings, one sentence each, which begin with the split.

    Raises:
        DatasetError: a split cannot be used.
    """
    looks = {}
    warnings = []
    for split, dataset in (("train", train), ("val", val)):
        looks[split] = _read(dataset, limit, f"Checking {split} data")
        warnings += [f"{split} data: {text}" for text in _warnings(dataset, looks[split])]
    for one, other in (("train", "val"), ("val", "train")):
        names = _only_in(looks[one], looks[other], train.info)
        if names:
            warnings.append(f"{one} data: it has {_listing(names)}, which {other} never shows")
    return warnings


def check_objects(data: DataConfig, evaluation: EvalConfig) -> None:
    """Refuses to score objects of things that the labels do not tell apart.

    Raises:
        ConfigError: the format has classes per pixel only.
    """
    if not (evaluation.panoptic and isinstance(data, FolderConfig) and data.things):
        return
    splits = [data.train, data.val] if isinstance(data.val, FolderSplit) else [data.train]
    if all(split.objects is not None for split in splits):
        return
    raise ConfigError(
        f"data.things names {_listing(data.things)}, but label files tell classes apart, not "
        "objects, and eval.panoptic would score each class of an image as one object; set objects "
        "in data.train and data.val to folders of files that number them (VOC's "
        "SegmentationObject), use data.format coco_panoptic or coco_instances, or leave out "
        "data.things, or set eval.panoptic: false"
    )


def _read(dataset: Dataset, limit: int, title: str) -> _Look:
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    total = len(dataset)
    indices = evenly_spread(total, limit)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = list(track(pool.map(partial(_look, dataset), indices), len(indices), title))
    errors = [look for look in looks if isinstance(look, DatasetError)]
    if errors:
        raise DatasetError(_summarise(dataset, errors, len(indices)))
    counts = np.sum([look for look in looks if not isinstance(look, DatasetError)], axis=0)
    return _Look(counts[:-1], int(counts[-1]), complete=len(indices) == total)


def _look(dataset: Dataset, index: int) -> NDArray[np.int64] | DatasetError:
    """Pixels per class, then of void, then the number of segments that were left out."""
    try:
        sample = dataset[index]
    except DatasetError as error:
        return error
    classes = sample.semantic_map() + 1
    counts = torch.bincount(classes.flatten(), minlength=dataset.info.num_classes + 1)
    return np.append(np.roll(counts.numpy(), -1), sample.left_out)


def _only_in(look: _Look, other: _Look, info: DatasetInfo) -> list[str]:
    """Classes of one split that the other was wholly read for in vain."""
    if not other.complete:
        return []
    only = (look.pixels[:-1] > 0) & (other.pixels[:-1] == 0)
    return [name for name, missing in zip(info.classes, only, strict=True) if missing]


def _summarise(dataset: Dataset, errors: Sequence[DatasetError], looked_at: int) -> str:
    values = [error for error in errors if isinstance(error, LabelValueError)]
    lines = [str(error) for error in errors if not isinstance(error, LabelValueError)]
    explain: Callable[[Sequence[LabelValueError]], str] | None = getattr(dataset, "explain", None)
    if values and explain is not None:
        lines.insert(0, explain(values))
    more = len(lines) - SHOWN
    lines = [*lines[:SHOWN], f"and {more} more"] if more > 0 else lines
    if len(errors) == 1:
        return lines[0]
    return "\n".join([f"{len(errors)} of the {looked_at} images looked at cannot be used:", *lines])


def _warnings(dataset: Dataset, look: _Look) -> list[str]:
    find: Callable[[], list[str]] | None = getattr(dataset, "look_for_mistakes", None)
    warnings = [] if find is None else find()
    info, pixels = dataset.info, look.pixels
    if look.left_out:
        warnings.append(f"listed segments without a pixel were left out: {look.left_out}")
    void = pixels[-1] / pixels.sum()
    if void > VOID_SHARE:
        warnings.append(
            f"{void:.0%} of the pixels are void; check data.ignore and data.label_offset"
        )
    absent = [name for name, count in zip(info.classes, pixels[:-1], strict=True) if count == 0]
    if info.num_classes == 1 and not info.things:
        warnings.append(
            f"'{info.classes[0]}' is the only class: nothing can be told apart from it; give other "
            "pixels a class too, such as background"
        )
    elif len(absent) >= info.num_classes - 1 and info.num_classes > 1:
        warnings.append(
            "at most one class occurs in the labels; check data.ignore, data.label_offset and "
            "data.label_map"
        )
    elif absent and look.complete:
        warnings.append(
            f"{len(absent)} of {info.num_classes} classes never occur: {_listing(absent)}"
        )
    return warnings


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")
