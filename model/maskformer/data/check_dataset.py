"""Reads a data set before the first training step, so that the loss sees no garbage."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.data.progress import track
from maskformer.data.sample import Dataset, DatasetInfo
from maskformer.errors import DatasetError, LabelValueError

SHOWN = 5
VOID_SHARE = 0.5


def check_dataset(dataset: Dataset, *, limit: int = 500, title: str = "Checking data") -> list[str]:
    """Reads all images, or `limit` of them evenly spread, and raises if any cannot be used.

    The same checks run whenever a sample is read, so what a partial look misses is still found.

    Args:
        dataset: one split.
        limit: how many images to read at most.
        title: of the progress bar.

    Returns:
        Warnings, one sentence each: classes that never occur, mostly void pixels.

    Raises:
        DatasetError: what is wrong, with the files, the likely cause and the setting to change.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    total = len(dataset)
    indices = np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(int)).tolist()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = list(track(pool.map(partial(_look, dataset), indices), len(indices), title))
    errors = [look for look in looks if isinstance(look, DatasetError)]
    if errors:
        raise DatasetError(_summarise(dataset, errors, len(indices)))
    pixels = np.sum([look for look in looks if not isinstance(look, DatasetError)], axis=0)
    return _warnings(pixels, dataset.info, complete=len(indices) == total)


def _look(dataset: Dataset, index: int) -> NDArray[np.int64] | DatasetError:
    """Pixels per class, void last."""
    try:
        sample = dataset[index]
    except DatasetError as error:
        return error
    classes = sample.semantic_map() + 1
    counts = torch.bincount(classes.flatten(), minlength=dataset.info.num_classes + 1)
    return np.roll(counts.numpy(), -1)


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


def _warnings(pixels: NDArray[np.int64], info: DatasetInfo, *, complete: bool) -> list[str]:
    warnings = []
    void = pixels[-1] / pixels.sum()
    if void > VOID_SHARE:
        warnings.append(
            f"{void:.0%} of the pixels are void; check data.ignore and data.label_offset"
        )
    absent = [name for name, count in zip(info.classes, pixels[:-1], strict=True) if count == 0]
    if len(absent) >= info.num_classes - 1 and info.num_classes > 1:
        warnings.append(
            "at most one class occurs in the labels; check data.ignore and data.label_offset"
        )
    elif absent and complete:
        listing = ", ".join(absent[:SHOWN]) + (" and more" if len(absent) > SHOWN else "")
        warnings.append(f"{len(absent)} of {info.num_classes} classes never occur: {listing}")
    return warnings
