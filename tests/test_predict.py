"""Which images are predicted on, and what their files are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskformer.data import DatasetError
from maskformer.predict import _output_names, find_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "deep/c.tiff", "notes.txt", "out/classes/a.png", "out/a.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(files: list[Path], root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files]


def test_folders_and_patterns(photos: Path) -> None:
    found = find_images([str(photos)])
    inside = ["out/a.png", "out/classes/a.png"]
    assert names(found, photos) == ["a.png", "b.JPG", "deep/c.tiff", *inside]
    found = find_images([str(photos / "deep"), str(photos / "*.png"), str(photos / "a.png")])
    assert names(found, photos) == ["deep/c.tiff", "a.png"]
    found = find_images([str(photos / "**" / "*.png")])
    assert names(found, photos) == ["a.png", "out/a.png", "out/classes/a.png"]


def test_results_of_an_earlier_run_are_no_images(photos: Path) -> None:
    out = photos / "deep" / ".." / "out"
    assert names(find_images([str(photos)], out), photos) == ["a.png", "b.JPG", "deep/c.tiff"]
    assert names(find_images([str(photos / "**" / "*.png")], out), photos) == ["a.png"]
    explicit = find_images([str(photos / "out" / "a.png")], out)
    assert names(explicit, photos) == ["out/a.png"]  # named outright: it is wanted


@pytest.mark.parametrize("pattern", ["nowhere", "*.gif", "folder.png", "out"])
def test_nothing_found(photos: Path, pattern: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(f"{pattern}': expected a file")):
        find_images([str(photos / pattern)], photos / "out")


def test_equal_names_are_numbered() -> None:
    files = [Path(name) for name in ("x/a.png", "y/a.jpg", "a_2.png", "z/a.bmp")]
    assert _output_names(files) == ["a", "a_2", "a_2_2", "a_3"]
