"""Whether two lists of classes mean the same: indices count in weights, names count to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassChange:
    """How two lists of classes differ.

    Attributes:
        same_count: both have equally many.
        reordered: a name stands at another place, so that one list's indices mislead in the other.
        text: the first difference, for messages.
    """

    same_count: bool
    reordered: bool
    text: str


def class_change(known: Sequence[str] | None, given: Sequence[str]) -> ClassChange | None:
    """Compares the class names of a checkpoint with those of a data set; None if they agree
    or the checkpoint brings no names.

    Case and surrounding spaces do not count. Names that a list has twice cannot show an order.
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
        return ClassChange(
            False, False, f"it knows {len(old)} classes, the data set has {len(new)}"
        )
    moved = [i for i in differing if old.count(old[i]) == 1 and new.count(old[i]) == 1]
    index = (moved or differing)[0]
    text = f"class {index} is '{known[index]}' there and '{given[index]}' in the data"
    if len(differing) > 1:
        text += f", and {len(differing) - 1} more differ"
    return ClassChange(True, bool(moved), text)
