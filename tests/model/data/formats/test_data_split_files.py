"""Which images make a split: lists, patterns, shares, suffixes, and names that nearly match."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from helpers.label_folders import columns, folder_config, write_pair

from maskformer.data import build_dataset
from maskformer.errors import DatasetError

LABELS = columns(0, 1)
SPLIT = {"images": "images", "labels": "labels"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "day/c", "day/d_old", "e f"):
        write_pair(tmp_path, name, LABELS)
    return tmp_path


def names(root: Path, split: Any = "train", **settings: Any) -> list[str]:
    data = build_dataset(folder_config(root, classes=["x", "y"], **settings), split)
    return [sample.name for sample in data]


def refused(root: Path, said: str, **settings: Any) -> None:
    with pytest.raises(DatasetError, match=said):
        names(root, **settings)


@pytest.mark.parametrize(
    "text",
    [
        "day/c\na\n",
        "a.jpg\r\n\r\nday/c.jpg\r\n",
        "a 1\nday/c  -1\n",
        "a\tb\nday/c\t1\n",
        "/images/a.jpg /labels/a.png\nimages/day/c.jpg labels/day/c.png\n",
        "\ufeffa\nday/c\n",
    ],
)
def test_a_list_of_names(root: Path, text: str) -> None:
    (root / "train.txt").write_text(text, encoding="utf-8", newline="")
    assert names(root, train={**SPLIT, "list": "train.txt"}) == ["a", "day/c"]
    assert len(names(root, "val", train={**SPLIT, "list": "train.txt"})) == 5


def test_a_name_with_a_space_in_a_list(root: Path) -> None:
    (root / "train.txt").write_text("e f\n")
    assert names(root, train={**SPLIT, "list": "train.txt"}) == ["e f"]


def test_labels_of_images_that_no_list_names_may_be_missing(root: Path) -> None:
    (root / "labels" / "b.png").unlink()
    (root / "train.txt").write_text("a\n")
    assert names(root, train={**SPLIT, "list": "train.txt"}) == ["a"]
    refused(root, "1 of 5 images have no label file")


def test_lists_that_do_not_fit(root: Path) -> None:
    split = {**SPLIT, "list": "train.txt"}
    refused(root, r"data.train.list: there is no file .*train\.txt", train=split)
    (root / "train.txt").write_text("a\nz\n")
    refused(root, r"1 of 2 names in .*, first z, are not in images", train=split)
    (root / "train.txt").write_text("\n")
    refused(root, r"data.train.list: .*train\.txt lists no image", train=split)
    (root / "train.txt").write_bytes(b"caf\xe9\n")
    refused(root, r"train\.txt cannot be read: line 1 is not UTF-8", train=split)


def test_patterns_that_leave_out(root: Path) -> None:
    assert names(root, train={**SPLIT, "exclude": "*_old.jpg"}) == ["a", "b", "day/c", "e f"]
    assert names(root, train={**SPLIT, "exclude": ["day/*", "b.*"]}) == ["a", "e f"]
    refused(
        root, r"data.train.exclude: the pattern 'z\*' matches no", train={**SPLIT, "exclude": "z*"}
    )
    refused(root, r"the pattern '\*' matches every", train={**SPLIT, "exclude": "*"})


def test_a_share(tmp_path: Path) -> None:
    for number in range(20):
        write_pair(tmp_path, f"{number:02d}", LABELS)
    train, val = names(tmp_path, val=0.1), names(tmp_path, "val", val=0.1)
    assert len(val) == 2
    assert sorted(train + val) == [f"{number:02d}" for number in range(20)]
    assert names(tmp_path, "val", val=0.1) == val
    assert names(tmp_path, "val", val=0.1, seed=1) != val
    assert {*names(tmp_path, "val", val=0.5)} > {*val}
    # Other images change little: names decide, not places in the list.
    for name in ("000", "zz"):
        write_pair(tmp_path, name, LABELS)
    assert {*names(tmp_path, "val", val=0.1)} & {*val}


def test_a_share_of_few_images(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", LABELS)
    refused(tmp_path, "data.val: 0.1 of 1 image leaves a split empty", val=0.1)
    write_pair(tmp_path, "b", LABELS)
    assert len(names(tmp_path, val=0.01)) == len(names(tmp_path, "val", val=0.99)) == 1


def test_several_suffixes(tmp_path: Path) -> None:
    for name, suffix in (("a", ".jpg"), ("b", ".PNG"), ("c", ".webp")):
        write_pair(tmp_path, name, LABELS, suffix)
    assert names(tmp_path, image_suffix=[".jpg", ".png", ".webp"]) == ["a", "b", "c"]
    assert names(tmp_path, image_suffix="*") == ["a", "b", "c"]
    config = folder_config(tmp_path, classes=["x", "y"], image_suffix=".jpg")
    data = build_dataset(config, "train")
    assert [sample.name for sample in data] == ["a"]
    left = "2 of another type (b.PNG, c.webp)", "2 without an image (b.png, c.png)"
    assert [note.rpartition(": ")[2] for note in data.notes] == [*left]


def test_images_and_labels_in_one_folder(root: Path) -> None:
    for file in (root / "labels").glob("*.png"):
        file.rename(root / "images" / file.name)
    split = {"images": "images", "labels": "images", "exclude": "day/*"}
    assert names(root, train=split) == ["a", "b", "e f"]
    assert names(root, train=split, image_suffix="*") == ["a", "b", "e f"]


def test_two_images_of_one_label_file(root: Path) -> None:
    (root / "images" / "a.JPG").write_bytes((root / "images" / "a.jpg").read_bytes())
    refused(root, r"a\.JPG and a\.jpg in .* share one name")


def test_case_of_the_suffix_and_forms_of_accents(tmp_path: Path) -> None:
    write_pair(tmp_path, "\u00e9", LABELS)
    (tmp_path / "labels" / "\u00e9.png").rename(
        tmp_path / "labels" / (unicodedata.normalize("NFD", "\u00e9") + ".PNG")
    )
    assert names(tmp_path) == ["\u00e9"]


@pytest.mark.parametrize(
    ("encoding", "newline"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n")]
)
def test_class_files_of_several_encodings(root: Path, encoding: str, newline: str) -> None:
    text = newline.join(["Geb\u00e4ude", "Stra\u00dfe", ""])
    (root / "classes.txt").write_bytes(text.encode(encoding))
    data = build_dataset(folder_config(root, classes="classes.txt", things="Geb\u00e4ude"), "train")
    assert data.info.classes == ("Geb\u00e4ude", "Stra\u00dfe")
    assert data.info.things == {0}


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_lines_end_at_line_ends_alone(root: Path, newline: str) -> None:
    names = ("sky\fb", "tree\u2028c", "road\x85d", "\v\x1ccar\x1de")
    (root / "classes.txt").write_bytes(newline.join(names).encode())
    data = build_dataset(folder_config(root, classes="classes.txt"), "train")
    assert data.info.classes == (*names[:3], "car\x1de")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_class_files_of_other_encodings(root: Path, encoding: str) -> None:
    (root / "classes.txt").write_bytes("b\nGeb\u00e4ude\n".encode(encoding))
    with pytest.raises(
        DatasetError, match=r"classes\.txt cannot be read .* save the file as UTF-8"
    ):
        build_dataset(folder_config(root, classes="classes.txt"), "train")


def test_the_list_of_a_labelling_tool_that_begins_with_void(root: Path) -> None:
    (root / "labels.txt").write_text("__ignore__\n_background_\ncat\n")
    with pytest.raises(DatasetError, match=r"labels\.txt is __ignore__, labelme's word for void"):
        build_dataset(folder_config(root, classes="labels.txt"), "train")
