"""What counts as a file of a folder: links, loops and hidden names."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskformer.errors import DatasetError
from maskformer.system.listing import list_files, list_folder, why_absent

pytestmark = pytest.mark.timeout(20)


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_below_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "deep/er/a.jpg", ".hidden.jpg", ".ipynb_checkpoints/b.jpg", "._b.jpg")
    assert list_files(tmp_path) == ["b.jpg", "deep/er/a.jpg"]


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "x/b/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "x/a").symlink_to("b")  # the real folder gives the name
    (tmp_path / "x/c").symlink_to("../elsewhere")
    (tmp_path / "x/3.jpg").symlink_to("b/1.jpg")  # an entry of its own
    (tmp_path / "x/4.jpg").symlink_to("nowhere")
    (tmp_path / "x/5.jpg").symlink_to("5.jpg")
    assert list_files(tmp_path / "x") == ["3.jpg", "4.jpg", "5.jpg", "b/1.jpg", "c/2.jpg"]


def test_loops(tmp_path: Path) -> None:
    make(tmp_path, "x/1.jpg", "x/y/2.jpg", "z/3.jpg")
    for number in range(5):
        (tmp_path / f"x/back{number}").symlink_to("../x")
        (tmp_path / f"x/y/up{number}").symlink_to("..")
        (tmp_path / f"z/over{number}").symlink_to("../x")
    assert list_files(tmp_path / "x") == ["1.jpg", "y/2.jpg"]
    assert list_files(tmp_path / "z") == ["3.jpg", "over0/1.jpg", "over0/y/2.jpg"]


def test_unreadable(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    said = r"nowhere cannot be read: the folder .* holds a\.jpg, but no nowhere$"
    with pytest.raises(DatasetError, match=said):
        list_files(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"a\.jpg cannot be read: .*a\.jpg is a file$"):
        list_files(tmp_path / "a.jpg")
    assert "holds a.jpg, but no x" in why_absent(tmp_path / ("x" * 300))


def test_what_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "x/a.jpg", "x/._a.jpg", "x/.git/b.jpg", "x/y/1.jpg", "x/y/.DS_Store", "x/y/.a")
    (tmp_path / "x/again").symlink_to("y")
    (tmp_path / "x/y/up").symlink_to("..")
    listing = list_folder(tmp_path / "x")
    assert listing.files == ["a.jpg", "y/1.jpg"]
    assert listing.skipped() == [
        "4 hidden (._a.jpg, .git, y/.DS_Store, ...)",
        "2 linked folders that were read already (again, y/up)",
    ]
    assert list_folder(tmp_path / "x" / ".git").skipped() == []


def test_why_a_path_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "runs/a/x", "runs/b/x", "runs/.c/x", "runs/d/x", "runs/e/x")
    monkeypatch.chdir(tmp_path)
    said = "the folder runs holds a, b, d, ..., but no none"
    assert why_absent(Path("runs/none")) == why_absent(Path("runs/none/checkpoints/last")) == said
    assert why_absent(Path("none/x")) == f"the folder {tmp_path} holds runs, but no none"
    assert why_absent(Path("runs/a/x/y")) == "runs/a/x is a file"


def test_what_this_program_wrote_below_is_no_file(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "day/b.jpg", "out/.predictions.jsonl", "out/a.png", "out/classes/a.png")
    make(tmp_path, "run/.maskformer-run", "run/predictions/a.png")
    make(tmp_path, "day/eval/.maskformer-evaluation", "day/eval/predictions/a.png")
    (tmp_path / "x").symlink_to("out")
    listing = list_folder(tmp_path)
    assert listing.files == ["a.jpg", "day/b.jpg"]
    results = [
        "day/eval/predictions/a.png",
        "out/a.png",
        "out/classes/a.png",
        "run/predictions/a.png",
    ]
    assert sorted(listing.results) == results
    assert "4 results of earlier calls" in " ".join(listing.skipped())
    assert list_files(tmp_path / "out") == ["a.png", "classes/a.png"]  # named outright
