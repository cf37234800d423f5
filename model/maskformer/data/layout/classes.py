"""What the raw values of label files may mean, and the lists that name them."""

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
"""First line of labelme's lists, for pixels that belong to no class."""


@dataclass(frozen=True)
class LabelMeaning:
    """How raw values become classes, in the keys of a recipe.

    Attributes:
        classes: the names, in order.
        source: where they come from: a text file, or nothing.
        offset: class = value - offset.
        ignore: values of no class.
        label_map: value or colour to class, where values do not count from the offset on.
    """

    classes: tuple[str, ...]
    source: str
    offset: int = 0
    ignore: tuple[int, ...] = (VOID,)
    label_map: tuple[tuple[int | str, str], ...] = ()


def read_meaning(root: Path, folder: str, values: Sequence[int]) -> LabelMeaning:
    """What the values mean.

    Args:
        root: of the data.
        folder: where labels and images lie, relative to the root; lists are looked for in it and
            above, up to a folder above the root.
        values: the raw values that occur, sorted.
    """
    for file, names in _lists(root, folder):
        meaning = _by_list(names, file, values)
        if meaning is not None:
            return meaning
    return _without_list(values)


def meaning_of_colors(values: Sequence[int]) -> LabelMeaning:
    """One class per colour; black is the background.

    Args:
        values: the colours, sorted, as `#rrggbb` read as a number.
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
    """One per line, or the column `Name` of a table (as in ADE20K).

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
    """The list's meaning, if the values fit it; where 0 is one more than the list holds, it is void
    and the list counts from 1.
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
