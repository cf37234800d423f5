"""Which images are predicted on, and what their files are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.hostile.images import SPECIAL, contents, encoded, write_special
from helpers.recipes import tiny_recipe

from maskformer import MaskFormer
from maskformer.config.load import merge_model_config
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import DatasetError
from maskformer.output.console import Progress
from maskformer.predict.finding import find_images
from maskformer.predict.running import _output_names, predict_images
from maskformer.predictor import Predictor


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


def test_results_in_another_folder_below_are_no_images(photos: Path) -> None:
    """As of one mode beside those of another."""
    for name in ("out/.predictions.jsonl", "deep/more/.predictions-0.jsonl", "deep/more/x.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    notes: list[str] = []
    expected = ["a.png", "b.JPG", "deep/c.tiff"]
    other = photos / "other"
    assert names(find_images([str(photos)], other, notes.append), photos) == expected
    said = "3 results of earlier calls (deep/more/x.png, out/a.png, out/classes/a.png)"
    assert said in notes[0].split("; ")
    assert names(find_images([str(photos / "**" / "*.png")], other), photos) == ["a.png"]
    # Named outright, they are wanted.
    assert names(find_images([str(photos / "out")], other), photos) == [
        "out/a.png", "out/classes/a.png"
    ]  # fmt: skip
    (photos / "deep/c.tiff").rename(photos / "deep/more/c.tiff")
    with pytest.raises(
        DatasetError, match=r"the folder holds .*2 results of earlier .*more/x\.png"
    ):
        find_images([str(photos / "deep")], other)


def test_the_rules_of_training(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "day/b.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "day1").symlink_to("../photos")
    expected = ["day1/a.jpg", "day1/day/b.jpg"]
    assert names(find_images([str(linked)]), linked) == expected
    assert names(find_images([str(linked / "**" / "*.jpg")]), linked) == expected
    assert names(find_images([str(linked / "**" / "day" / "*")]), linked) == expected[1:]
    assert names(find_images([str(linked / "**")]), linked) == expected
    assert names(find_images([str(linked / "d*" / "**" / "?.jpg")]), linked) == expected


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    junk = ["._a.jpg", ".ipynb_checkpoints/a.jpg", "Thumbs.db", "day/IMG_1.HEIC"]
    for name in ("a.jpg", "b.GIF", "day/c.jp2", *junk):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    notes: list[str] = []
    assert names(find_images([str(tmp_path)], None, notes.append), tmp_path) == [
        "a.jpg", "b.GIF", "day/c.jp2"
    ]  # fmt: skip
    said = "2 hidden (._a.jpg, .ipynb_checkpoints); 2 of another type (Thumbs.db, day/IMG_1.HEIC)"
    assert notes == [f"skipped in {tmp_path}: {said}"]
    find_images([str(tmp_path / "*.jpg"), str(tmp_path / "day" / "c.jp2")], None, notes.append)
    assert len(notes) == 1


@pytest.mark.timeout(20)
def test_links_that_lead_back(photos: Path) -> None:
    for number in range(4):
        (photos / f"deep/back{number}").symlink_to("..")
    expected = ["a.png", "b.JPG", "deep/c.tiff", "out/a.png", "out/classes/a.png"]
    assert names(find_images([str(photos)]), photos) == expected
    pattern = str(photos / "**" / "*.tiff")
    assert names(find_images([pattern]), photos) == ["deep/c.tiff"]
    again = photos / "deep" / "back0" / "a.png"  # the same file on another way
    assert names(find_images([str(photos), str(again)]), photos) == expected


@pytest.mark.parametrize("pattern", ["nowhere", "*.gif", "folder.png", "out"])
def test_nothing_found(photos: Path, pattern: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(f"{pattern}': expected a file")):
        find_images([str(photos / pattern)], photos / "out")


def test_why_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_1.HEIC").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"the folder holds 1 \.HEIC, and images are \.apng, "):
        find_images(["photos"])
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(DatasetError, match=r"all 1 are in the output folder \(--output \.\)"):
        find_images(["photos"], Path())


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_do_not_end_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    sure = ("empty", "eps", "png of too many pixels", "bmp of no pixels", "avif of empty data")
    broken = {name: data for name, data in contents().items() if name in sure}
    for name, data in broken.items():
        (photos / f"{name}.jpg").write_bytes(data)
    special = [kind for kind in SPECIAL if kind != "folder"]  # it holds images
    for kind in special:
        write_special(photos / f"{kind}.jpg", kind)
    for name in ("a good one.png", "z good one.png"):
        (photos / name).write_bytes(encoded("PNG"))
    config = tiny_recipe()
    model = MaskFormer(merge_model_config(config.model, {"num_classes": 2}))
    info = DatasetInfo(("a", "b"), frozenset(), palette(2), (0, 1))
    files = find_images([str(photos)])
    predictor = Predictor(model, config, info)
    failures = predict_images(predictor, files, tmp_path / "out", progress=Progress())
    assert failures == len(broken) + len(special) == len(files) - 2
    said = capsys.readouterr().out
    assert all(f"{name}.jpg" in said for name in (*broken, *special))
    assert "Traceback" not in said
    written = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert written == ["a good one.png", "z good one.png"]


def test_equal_names_are_numbered() -> None:
    files = [Path(name) for name in ("x/a.png", "y/a.jpg", "a_2.png", "z/a.bmp")]
    assert _output_names(files) == ["a", "a_2", "a_2_2", "a_3"]
