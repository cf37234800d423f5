from __future__ import annotations

import pytest

from maskformer.data.class_change import check_same_classes, class_change
from maskformer.errors import DatasetError


def test_the_same_names_are_no_change() -> None:
    assert class_change(["a", "B "], ["A", "b"]) is None
    assert class_change(None, ["a"]) is None


@pytest.mark.parametrize(
    ("known", "given", "order"),
    [
        (["a", "b", "c"], ["c", "A ", "b"], (2, 0, 1)),
        (["a", "b"], ["b", "x"], None),
        (["a", "a", "b"], ["b", "a", "a"], None),
    ],
)
def test_where_each_class_stands(
    known: list[str], given: list[str], order: tuple[int, ...] | None
) -> None:
    change = class_change(known, given)
    assert change is not None
    assert change.order == order


def test_splits_of_other_classes() -> None:
    check_same_classes(["a", "b"], ("a", "b"))
    for train, val, said in (
        (["a", "b"], ["a", "c"], "class 1 is b in train and c in val; only train has b; only val"),
        (["a", "b"], ["b", "a"], "class 0 is a in train and b in val; the names are the same, in"),
        (["a"], ["a", "b"], "class 1 is missing in train and b in val; only val has b"),
    ):
        with pytest.raises(DatasetError, match=said):
            check_same_classes(train, val)


@pytest.mark.parametrize(
    ("known", "given", "reordered", "text"),
    [
        (["a", "b", "c"], ["c", "b", "a"], True, "class 0 is 'a' there and 'c' in the data, and 1"),
        (["a", "b"], ["a", "x"], False, "class 1 is 'b' there and 'x' in the data"),
        (["x", "a", "b"], ["y", "b", "z"], True, "class 2 is 'b' there and 'z' in the data"),
        (["a", "a", "b"], ["b", "a", "a"], True, "class 2 is 'b'"),
        (["a", "a", "b"], ["a", "c", "b"], False, "class 1 is 'a'"),
    ],
)
def test_changes(known: list[str], given: list[str], reordered: bool, text: str) -> None:
    change = class_change(known, given)
    assert change is not None
    assert change.same_count
    assert change.reordered is reordered
    assert text in change.text


def test_another_count_is_no_order() -> None:
    change = class_change(["a", "b"], ["b"])
    assert change is not None
    assert not change.same_count
    assert change.text == "it has 2 classes, the data set has 1"
