"""Comparison of two lists of classes: weights refer to classes by index, people by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from maskformer.errors import DatasetError
from maskformer.system.text import escape

_LISTED = 8


@dataclass(frozen=True)
class ClassChange:
    """How two lists of classes differ.

    Attributes:
        same_count: whether both lists have the same length.
        reordered: whether a name is at different indices, so that weights of one list would be
            assigned to the wrong classes of the other.
        text: the first difference, for messages.
        order: the index in the checkpoint of each class of the data, if both lists have the same
            unique names.
    """

    same_count: bool
    reordered: bool
    text: str
    order: tuple[int, ...] | None = None


def check_same_classes(train: Sequence[str], val: Sequence[str]) -> None:
    """Check that both splits have the same list of classes.

    Raises:
        DatasetError: the lists differ. The message says where, and which names are in one only.
    """
    if tuple(train) == tuple(val):
        return
    pairs = enumerate(zip_longest(train, val, fillvalue="missing"))
    index, (one, other) = next((k, pair) for k, pair in pairs if pair[0] != pair[1])
    only = [
        f"only {split} has {', '.join(map(escape, names[:_LISTED]))}"
        f"{', ...' if len(names) > _LISTED else ''}"
        for split, names in (
            ("train", [name for name in train if name not in val]),
            ("val", [name for name in val if name not in train]),
        )
        if names
    ]
    raise DatasetError(
        "the train and the val data do not have the same list of classes: class "
        f"{index} is {escape(one)} in train and {escape(other)} in val; "
        f"{'; '.join(only) or 'the names are the same, in another order'}"
    )


def class_change(known: Sequence[str] | None, given: Sequence[str]) -> ClassChange | None:
    """Compare the class names of a checkpoint with those of a data set. The result is None if they
    agree, or if the checkpoint has no names.

    Case and surrounding spaces are ignored. A name that occurs twice does not count as reordered.
    """
    if known is None:
        return None
    old, new = ([name.strip().casefold() for name in names] for names in (known, given))
    differing = [
        index for index, pair in enumerate(zip(old, new, strict=False)) if len({*pair}) > 1
    ]
    if not differing and len(old) == len(new):
        return None
    if len(old) != len(new):
        return ClassChange(False, False, f"it has {len(old)} classes, the data set has {len(new)}")
    moved = [i for i in differing if old.count(old[i]) == 1 and new.count(old[i]) == 1]
    index = (moved or differing)[0]
    here, there = escape(given[index]), escape(known[index])
    text = f"class {index} is '{there}' there and '{here}' in the data"
    if len(differing) > 1:
        text += f", and {len(differing) - 1} more differ"
    one_to_one = len({*old}) == len(old) and {*old} == {*new}
    order = tuple(old.index(name) for name in new) if one_to_one else None
    return ClassChange(True, bool(moved), text, order)
