"""Why images of a split cannot be used, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from maskformer.data.datasets.shards import Member
from maskformer.data.inspection.look import Look
from maskformer.data.sample import Dataset
from maskformer.errors import DatasetError, LabelValueError
from maskformer.system.text import escape

SHOWN = 5
LISTED = 50
"""Kinds of problems that are told where all of them are asked for."""
NAMES = 10
Files = Sequence[tuple[Path | Member, ...]]
"""Of each image."""


def refuse(dataset: Dataset, look: Look) -> None:
    """Ends work on a split with images that cannot be used.

    Raises:
        DatasetError: there are some; it tells the first of them.
    """
    values, others = _parted(look)
    lines = [*_explained(dataset, [*values.values()]), *map(str, others.values())]
    lines = _most(lines, SHOWN)
    if len(look.errors) > 1:
        count = f"{len(look.errors)} of the {look.looked_at} images looked at"
        lines.insert(0, f"{count} cannot be used:")
    if lines:
        raise DatasetError("\n".join(lines))


def all_problems(dataset: Dataset, look: Look) -> list[str]:
    """Each kind of problem once, with the images that have it."""
    values, others = _parted(look)
    files: Files = getattr(dataset, "files", ())
    kinds: dict[str, list[int]] = {}
    for index, error in others.items():
        kinds.setdefault(_kind(str(error), files, index), []).append(index)
    explained = _explained(dataset, [*values.values()])
    lines = [_with_others(text, files, [*values][1:]) for text in explained]
    lines += [_with_others(str(others[k]), files, more) for k, *more in kinds.values()]
    return _most(lines, LISTED)


def _parted(look: Look) -> tuple[dict[int, LabelValueError], dict[int, DatasetError]]:
    """Errors of label values, and the others."""
    values = {k: error for k, error in look.errors.items() if isinstance(error, LabelValueError)}
    return values, {k: error for k, error in look.errors.items() if k not in values}


def _explained(dataset: Dataset, errors: Sequence[LabelValueError]) -> list[str]:
    """What many label files have in common."""
    explain: Callable[[Sequence[LabelValueError]], str] | None = getattr(dataset, "explain", None)
    return [explain(errors)] if errors and explain is not None else []


def _most(lines: list[str], most: int) -> list[str]:
    more = len(lines) - most
    return [*lines[:most], f"and {more} more"] if more > 0 else lines


def _kind(text: str, files: Files, index: int) -> str:
    """A message without the names of files and the figures, which differ from image to image."""
    for file in files[index] if files else ():
        text = text.replace(str(file), "*").replace(escape(file), "*")
    return re.sub(r"[0-9.]+(e-?[0-9]+)?", "#", text)


def _with_others(text: str, files: Files, others: Sequence[int]) -> str:
    """A message, and the names of other images that it holds for."""
    if not others:
        return text
    names = [escape(files[index][0].name) for index in others[:NAMES]] if files else []
    more = f" and {len(others) - NAMES} more" if names and len(others) > NAMES else ""
    return (
        f"{text.rstrip('.')}; the same holds for {len(others):,} "
        f"other{'s' * (len(others) > 1)}{': ' * bool(names)}{', '.join(names)}{more}"
    )
