"""The mapping of raw values in label files to classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from maskformer.config.schema import ANY, PixelLabels
from maskformer.data.datasets.class_names import read_names
from maskformer.errors import DatasetError

LARGEST_VALUE = 2**16 - 1
"""The largest raw value of a label file without colours."""
VOID, OUTSIDE = -1, -2
_COLOR = re.compile("#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class LabelTable:
    """The classes, and the mapping of raw values to them.

    Attributes:
        names: the names of the classes.
        class_of: the class of each raw value, or `VOID`.
        rest: the class of all other values, or `OUTSIDE` if they are an error.
        numbers: the raw value of each class in label files that are written.
        colors: whether raw values are colours, R << 16 | G << 8 | B.
    """

    names: tuple[str, ...]
    class_of: Mapping[int, int]
    rest: int
    numbers: tuple[int, ...]
    colors: bool = False

    def classes(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the class of each value `[N]`, or `VOID` or `OUTSIDE`."""
        return np.array([self.class_of.get(v, self.rest) for v in values.tolist()], np.int64)


def count_values(values: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values that occur, ascending, and the number of pixels of each."""
    if values.size and int(values.min()) >= 0 and int(values.max()) <= LARGEST_VALUE:
        counts = np.bincount(values.ravel())
        present = counts.nonzero()[0]
        return present, counts[present]
    present, counts = np.unique(values, return_counts=True)
    return present.astype(np.int64), counts


def is_color(key: int | str) -> bool:
    """Whether a key of `data.label_map` is a colour such as `#rrggbb`."""
    return isinstance(key, str) and _COLOR.fullmatch(key) is not None


def offset_table(names: tuple[str, ...], config: PixelLabels) -> LabelTable:
    """Make the table of a recipe without `label_map`: class = value - `label_offset`."""
    numbers = tuple(k + config.label_offset for k in range(len(names)))
    inside = {value: k for k, value in enumerate(numbers) if 0 <= value <= LARGEST_VALUE}
    return LabelTable(names, inside | dict.fromkeys(config.ignore, VOID), OUTSIDE, numbers)


def mapped_table(
    label_map: Mapping[int | str, int | str | None], config: PixelLabels
) -> LabelTable:
    """Make the table of a recipe with `label_map`.

    Raises:
        DatasetError: a key or a class is unknown, or no value is mapped to a class.
    """
    rules = dict(label_map)
    fill = rules.pop(ANY, OUTSIDE)
    given = None
    if config.classes is not None:
        given = read_names(config.classes, config.root, "data.classes")
    names, class_of_name = name_classes([*label_map.values()], given)
    values = _raw_values([*rules], config)
    class_of = dict(zip(values, (class_of_name[new] for new in rules.values()), strict=True))
    rest = OUTSIDE if fill == OUTSIDE else class_of_name[fill]
    reached = {rest, *class_of.values()}
    missing = [name for k, name in enumerate(names) if k not in reached]
    if missing:
        raise DatasetError(
            f"data.label_map maps no value to {', '.join(missing[:8])} of data.classes; map a "
            "value to each class, or remove the class from the list"
        )
    if any(map(is_color, rules)):
        return LabelTable(names, class_of, rest, tuple(range(len(names))), colors=True)
    class_of = dict.fromkeys(config.ignore, VOID) | class_of
    free = next(value for value in count() if value not in class_of)
    numbers = {rest: free} | {k: value for value, k in reversed(class_of.items())}
    return LabelTable(names, class_of, rest, tuple(numbers[k] for k in range(len(names))))


def name_classes(
    wanted: Sequence[int | str | None], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[int | str | None, int]]:
    """Return the names of the classes of a map, and the class index of each of its values.

    Args:
        wanted: the values of the map (names, indices or None for void), in order.
        given: the list of classes; by default the names in the map, in order.

    Raises:
        DatasetError: a class is not in the list, or there are no classes.
    """
    mentioned = [value for value in dict.fromkeys(wanted) if value is not None]
    if not mentioned:
        raise DatasetError("data.label_map maps everything to void, expected at least one class")
    if given is None:
        numbers = [value for value in mentioned if isinstance(value, int)]
        if numbers and len(numbers) < len(mentioned):
            raise DatasetError(
                "data.label_map mixes names and numbers of classes: set data.classes to the list "
                "that the numbers refer to"
            )
        given = (
            tuple(f"class {k}" for k in range(max(numbers) + 1))
            if numbers
            else tuple(str(value) for value in mentioned)
        )
    class_of: dict[int | str | None, int] = {None: VOID}
    class_of |= {k: k for k in range(len(given))} | {name: k for k, name in enumerate(given)}
    unknown = [str(value) for value in mentioned if value not in class_of]
    if unknown:
        raise DatasetError(
            f"data.label_map names the class {', '.join(unknown[:8])}, which is not in the list of "
            f"{len(given)} classes ({', '.join(given[:8])}{', ...' if len(given) > 8 else ''})"
        )
    return given, class_of


def _raw_values(keys: Sequence[int | str], config: PixelLabels) -> list[int]:
    """Convert the keys of the map to raw values."""
    known: dict[str, int] = {}
    if config.label_names is not None:
        names = read_names(config.label_names, config.root, "data.label_names")
        known = {name: k + config.label_offset for k, name in enumerate(names)}
    colors = [*map(is_color, keys)]
    if any(colors) and not all(colors):
        raise DatasetError(
            "data.label_map has colours and other keys; expected one kind, such as '#ff0000'"
        )
    if any(colors):
        values = [int(str(key)[1:], 16) for key in keys]
        _check_once(keys, values)
        return values
    unknown = [key for key in keys if isinstance(key, str) and key not in known]
    if unknown:
        raise DatasetError(
            f"data.label_map has the key {unknown[0]}, expected a raw value, a colour such as "
            "'#ff0000', '*' or a name that data.label_names lists"
        )
    values = [known[key] if isinstance(key, str) else key for key in keys]
    _check_once(keys, values)
    return values


def _check_once(keys: Sequence[int | str], values: Sequence[int]) -> None:
    """Raise an error if two keys are the same raw value, such as a name and its number, or a colour
    in two spellings.
    """
    given: dict[int, int | str] = {}
    for key, value in zip(keys, values, strict=True):
        if value in given:
            raise DatasetError(
                f"data.label_map has the keys {given[value]} and {key}, which are one raw value; "
                "remove one of them"
            )
        given[value] = key
