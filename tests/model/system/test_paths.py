"""Names that came with data: where they lead, and which files are made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskformer.errors import DatasetError, UsageError
from maskformer.system.paths import (
    LONGEST,
    NAME_BYTES,
    OutputNames,
    find_input_in,
    folders_and_links_of,
    given_path,
    image_ids,
    missing_files,
    name_inside,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("sub/a.png", "sub/a.png"),
        ("sub//a.png", "sub/a.png"),
        ("./a.png", "a.png"),
        ("sub/../a.png", "a.png"),
        ("../img/a.png", "a.png"),
        ("ROOT/img/sub/a.png", "sub/a.png"),
        ("a:b.png", "a:b.png"),
        ("..a.png", "..a.png"),
        ("\x1b[31m\udcb3.png", "\x1b[31m\udcb3.png"),
    ],
)
def test_names_inside(tmp_path: Path, name: str, expected: str) -> None:
    assert name_inside(tmp_path / "img", name.replace("ROOT", str(tmp_path)), "x") == expected


def test_an_absolute_name_may_use_another_way_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real" / "img").mkdir(parents=True)
    (tmp_path / "way").symlink_to("real")
    name = str(tmp_path / "real" / "img" / "a.png")
    assert name_inside(tmp_path / "way" / "img", name, "x") == "a.png"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a.png", "is outside of"),
        ("sub/../../a.png", "is outside of"),
        ("../image/a.png", "is outside of"),
        ("/etc/passwd", "is outside of"),
        ("//etc/passwd", "is outside of"),
        ("..\\a.png", "backslashes"),
        ("sub\\a.png", "backslashes"),
        ("C:\\a.png", "drive"),
        ("c:/a.png", "drive"),
        ("\\\\server\\share\\a.png", "backslashes"),
        ("", "is empty"),
        (".", "names a folder"),
        ("..", "names a folder"),
        ("sub/", "names a folder"),
        ("sub/.", "names a folder"),
        ("/", "names a folder"),
        ("a\0.png", "contains NUL"),
        (None, "must be the name of a file, got None"),
        (["a.png"], "must be the name of a file"),
    ],
)
def test_names_elsewhere_are_refused(tmp_path: Path, name: object, fault: str) -> None:
    with pytest.raises(DatasetError, match=fault):
        name_inside(tmp_path / "img", name, "the file_name")


def test_links_lead_no_further_than_the_root(tmp_path: Path) -> None:
    root, images = tmp_path / "data", tmp_path / "data" / "img"
    images.mkdir(parents=True)
    for file in (tmp_path / "mine.png", root / "store.png", images / "a.png"):
        file.touch()
    (images / "inside.png").symlink_to(root / "store.png")
    (images / "outside.png").symlink_to(tmp_path / "mine.png")
    (images / "up").symlink_to(tmp_path)
    (images / "loop.png").symlink_to("loop.png")
    names = ["a.png", "inside.png", "none.png", "none/a.png", "x" * 300, "a.png/b.png"]
    assert missing_files(images, names, root, "x") == names[2:]
    for name in ("outside.png", "up/mine.png"):
        with pytest.raises(DatasetError, match=f"'{name}' is a link to .*, outside of"):
            missing_files(images, [name], root, "x")
    with pytest.raises(DatasetError, match="loop"):
        missing_files(images, ["loop.png"], root, "x")


def take(*names: str) -> list[str]:
    output = OutputNames()
    return [output.take(name) for name in names]


def test_output_names_by_hand() -> None:
    assert take("a", "city/b", "city/c") == ["a", "city/b", "city/c"]
    assert take("a", "a", "A", "a_2") == ["a", "a_2", "A_3", "a_2_2"]
    assert take("\u00e9", "e\u0301") == ["\u00e9", "e\u0301_2"]  # one file on some systems
    assert take("../../a", "/etc/passwd", "..\\a", "C:\\a", "C:/a") == [
        "__/__/a", "etc/passwd", ".._a", "C:_a", "C_/a",
    ]  # fmt: skip
    assert take("", ".", "/", "..") == ["image", "image_2", "image_3", "__"]
    assert take("a\x1b\n", "\udcb3", "\ud800", "\u202ea") == [
        "a%1B%0A", "%B3", "%ED%A0%80", "%E2%80%AEa",
    ]  # fmt: skip
    assert take("a.png/b", "a") == ["a.png/b", "a_2"]  # a.png is a folder already
    assert take("a", "a.png/b", "a.png_b") == ["a", "a.png_b", "a.png_b_2"]


anything = st.text(st.characters(), max_size=300) | st.sampled_from(
    ["a", "A", "..", "a/../b", "a" * 999]
)


@given(st.lists(anything, max_size=6))
def test_output_names_are_distinct_and_stay_inside(names: list[str]) -> None:
    taken = take(*names)
    files = [f"{name}.png" for name in taken]
    assert len({file.casefold() for file in files}) == len(files)
    folders = {str(above) for file in files for above in Path(file.casefold()).parents}
    assert folders.isdisjoint(file.casefold() for file in files)
    for file in files:
        inside = os.path.relpath(os.path.normpath(f"/out/{file}"), "/out")
        assert inside == file
        assert not inside.startswith("../")
        assert len(file.encode()) <= LONGEST + NAME_BYTES
        assert all(len(part.encode()) <= NAME_BYTES for part in file.split("/"))


def test_long_names_keep_apart() -> None:
    first, second = take("猫" * 100 + "1", "猫" * 100 + "2")
    assert first != second
    assert len(f"{first}.png".encode()) <= NAME_BYTES
    assert first.startswith("猫" * 70)


def test_ids_are_numbers_where_these_are_unique() -> None:
    assert image_ids(["000042", "a", "7"]) == [42, "a", 7]
    assert image_ids(["001", "01", "1", "2"]) == ["001", "01", "1", 2]
    assert image_ids(["9" * 30, "-1", "1.5", "\u0663", "3"]) == [
        "9" * 30,
        "-1",
        "1.5",
        "\u0663",
        "3",
    ]


def test_an_output_folder_knows_its_inputs(tmp_path: Path) -> None:
    images = tmp_path / "data" / "img"
    images.mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "b.png").touch()
    (images / "a.png").touch()
    (images / "b.png").symlink_to(tmp_path / "store" / "b.png")
    (tmp_path / "alias").symlink_to("data")
    (images / "out").mkdir()
    places = folders_and_links_of([images / "a.png", images / "b.png"])
    for folder in (images, tmp_path / "data", tmp_path, tmp_path / "alias", tmp_path / "store"):
        assert find_input_in(folder, places) is not None, folder
    for folder in (images / "out", tmp_path / "new", images / "new"):
        assert find_input_in(folder, places) is None, folder


@pytest.mark.parametrize("path", [".", "a/b", Path()])
def test_a_given_path(path: str | Path) -> None:
    assert given_path("folder", path) == Path(path)


def test_what_is_no_path() -> None:
    with pytest.raises(TypeError, match=r"^folder must be a path, got None$"):
        given_path("folder", None)  # type: ignore[arg-type]


def test_an_empty_text_is_not_the_current_folder() -> None:
    with pytest.raises(UsageError, match=r"^folder must be a path, got an empty text"):
        given_path("folder", "")
