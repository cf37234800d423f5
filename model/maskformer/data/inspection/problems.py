"""Messages on the images of a split that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from maskformer.data.datasets.shards import Member
from maskformer.data.inspection.scan import Scan
from maskformer.data.sample import Dataset
from maskformer.errors import DatasetError, LabelValueError
from maskformer.system.text import escape

SHOWN = 5
LISTED = 50
"""Limit of the number of problems in a full report, in which equal ones count once."""
NAMES = 10
Files = Sequence[tuple[Path | Member, ...]]
"""The files of each image."""


def raise_problems(dataset: Dataset, scan: Scan) -> None:
    """Raise an error if images of a split cannot be used.

    Raises:
        DatasetError: the first `SHOWN` problems.
    """
    values, others = _split_errors(scan)
    lines = [*_explained(dataset, [*values.values()]), *map(str, others.values())]
    lines = _truncate(lines, SHOWN)
    if len(scan.errors) > 1:
        count = f"{len(scan.errors)} of the {scan.num_read} images that were checked"
        lines.insert(0, f"{count} cannot be used:")
    if lines:
        raise DatasetError("\n".join(lines))


def all_problems(dataset: Dataset, scan: Scan) -> list[str]:
    """Return each kind of problem once, with the names of the images that have it."""
    values, others = _split_errors(scan)
    files: Files = getattr(dataset, "files", ())
    kinds: dict[str, list[int]] = {}
    for index, error in others.items():
        kinds.setdefault(_kind(str(error), files, index), []).append(index)
    explained = _explained(dataset, [*values.values()])
    lines = [_with_others(text, files, [*values][1:]) for text in explained]
    lines += [_with_others(str(others[k]), files, more) for k, *more in kinds.values()]
    return _truncate(lines, LISTED)


def _split_errors(scan: Scan) -> tuple[dict[int, LabelValueError], dict[int, DatasetError]]:
    """Separate the errors of label values from the others."""
    values = {k: error for k, error in scan.errors.items() if isinstance(error, LabelValueError)}
    return values, {k: error for k, error in scan.errors.items() if k not in values}


def _explained(dataset: Dataset, errors: Sequence[LabelValueError]) -> list[str]:
    """Return one message for the errors of label values in all files, if there are any."""
    explain: Callable[[Sequence[LabelValueError]], str] | None = getattr(dataset, "explain", None)
    return [explain(errors)] if errors and explain is not None else []


def _truncate(lines: list[str], limit: int) -> list[str]:
    more = len(lines) - limit
    return [*lines[:limit], f"and {more} more"] if more > 0 else lines


def _kind(text: str, files: Files, index: int) -> str:
    """Return a message without file names and numbers, which differ from image to image."""
    for file in files[index] if files else ():
        text = text.replace(str(file), "*").replace(escape(file), "*")
    return re.sub(r"[0-9.]+(e-?[0-9]+)?", "#", text)


def _with_others(text: str, files: Files, others: Sequence[int]) -> str:
    """Append the names of other images with the same problem to a message."""
    if not others:
        return text
    names = [escape(files[index][0].name) for index in others[:NAMES]] if files else []
    more = f" and {len(others) - NAMES} more" if names and len(others) > NAMES else ""
    return (
        f"{text.rstrip('.')}; the same holds for {len(others):,} "
        f"other{'s' * (len(others) > 1)}{': ' * bool(names)}{', '.join(names)}{more}"
    )
