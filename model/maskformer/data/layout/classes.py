"""Guessing the classes of raw label values, with the names in a list of classes if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskformer.config.schema.fields import check_name
from maskformer.system.reading import read_lines

LIST_NAMES = (
    "classes.txt", "class_names.txt", "labels.txt", "label_names.txt", "categories.txt",
    "names.txt", "objectInfo150.txt",
)  # fmt: skip
VOID = 255
BLACK = "background"
MASK_NAMES = (BLACK, "object")
_NO_CLASS = "__ignore__"
"""First line of labelme's lists, which stands for void."""


@dataclass(frozen=True)
class LabelMeaning:
    """The mapping of raw values to classes, as settings of a recipe.

    Attributes:
        classes: the names of the classes, in order.
        source: the text file that they come from, or "".
        offset: `label_offset`: class = value - offset.
        ignore: the values of void.
        label_map: pairs of value or colour and class, if values are not consecutive.
    """

    classes: tuple[str, ...]
    source: str
    offset: int = 0
    ignore: tuple[int, ...] = (VOID,)
    label_map: tuple[tuple[int | str, str], ...] = ()


def read_meaning(root: Path, folder: str, values: Sequence[int]) -> LabelMeaning:
    """Guess the classes of raw values.

    Args:
        root: the root of the data.
        folder: the folder of the labels, relative to the root. Lists of classes are looked up
            in it and its parents, up to the parent of the root.
        values: the raw values that occur, sorted.
    """
    for file, names in _lists(root, folder):
        meaning = _by_list(names, file, values)
        if meaning is not None:
            return meaning
    return _without_list(values)


def meaning_of_colors(values: Sequence[int]) -> LabelMeaning:
    """Make one class per colour; black is the background.

    Args:
        values: the colours as numbers (0xrrggbb), sorted.
    """
    named = tuple((f"#{value:06x}", f"class {value:06x}" if value else BLACK) for value in values)
    return LabelMeaning(tuple(name for _, name in named), "", ignore=(), label_map=named)


def _lists(root: Path, folder: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    parents = [root / folder]
    while parents[-1] != root and root in parents[-1].parents:
        parents.append(parents[-1].parent)
    for parent in [*parents, root.parent]:
        for name in LIST_NAMES:
            try:
                yield parent / name, tuple(_names(read_lines(parent / name)))
            except (OSError, ValueError):
                continue


def _names(lines: Sequence[str]) -> list[str]:
    """Return the names in a list with one per line, or in the column `Name` of a table (ADE20K).

    Raises:
        ValueError: a name is missing or too long.
    """
    header, *rows = (line.split("\t") for line in lines or [""])
    if len(header) == 1 or "Name" not in header:
        names = [line for line in lines if line != _NO_CLASS]
    else:
        column = header.index("Name")
        names = [row[column] if column < len(row) else "" for row in rows]
        if not all(names):
            raise ValueError("a row of the table has no name")
    return [check_name(name) for name in names]


def _by_list(names: tuple[str, ...], file: Path, values: Sequence[int]) -> LabelMeaning | None:
    """Return the meaning of the values if the list fits them. If the largest value equals the
    number of names, or the list is that of ADE20K, 0 is void and the names are those of the values
    from 1 on.
    """
    present = [value for value in values if value != VOID]
    count, largest = len(names), max(present, default=0)
    if not names or largest > count:
        return None
    if largest == count or (file.name == "objectInfo150.txt"):
        return LabelMeaning(names, str(file), offset=1, ignore=(0, VOID))
    return LabelMeaning(names, str(file))


def _without_list(values: Sequence[int]) -> LabelMeaning:
    present = [value for value in values if value != VOID]
    if [*values] == [0, VOID]:
        return LabelMeaning(
            MASK_NAMES, "", ignore=(), label_map=tuple(zip(values, MASK_NAMES, strict=True))
        )
    if not present:
        return LabelMeaning(("class 0",), "")
    low, high = present[0], present[-1]
    if len(present) == high + 1 - low or high < 2 * len(present):
        numbers = range(min(low, 1), high + 1)
        return LabelMeaning(tuple(f"class {value}" for value in numbers), "", offset=numbers[0])
    named = tuple((value, f"class {value}") for value in present)
    return LabelMeaning(tuple(name for _, name in named), "", label_map=named)
