"""Which files of two folders are an image and its labels."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.config.schema import FolderConfig
from maskformer.data import build_dataset
from maskformer.data.datasets.folder import Folder
from maskformer.data.pairing import PairRules, pair_files
from maskformer.errors import DatasetError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs(
    root: Path, images: str = "images", labels: str = "labels", suffix: str = "*"
) -> list[str]:
    found = pair_files(root / images, root / labels, PairRules("train", [suffix], ".png"))
    return [
        f"{pair.image.relative_to(root / images)} {pair.labels.relative_to(root / labels)}"
        for pair in found.pairs
    ]


def notes(root: Path) -> list[str]:
    found = pair_files(root / "images", root / "labels", PairRules("train", ["*"], ".png"))
    return [note.replace(f"{root}/", "") for note in found.notes]


def refused(root: Path, match: str, suffix: str = "*") -> None:
    with pytest.raises(DatasetError, match=match):
        pairs(root, suffix=suffix)


def test_all_types_in_any_case(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG", "c.PNG", "d.TiF", "e.webp", "f.Jp2", "g.jfif"):
        make(tmp_path, f"images/{name}", f"labels/{name[0]}.{'png' if name < 'd' else 'PNG'}")
    assert pairs(tmp_path) == [
        "a.jpg a.png", "b.JPEG b.png", "c.PNG c.png", "d.TiF d.PNG", "e.webp e.PNG",
        "f.Jp2 f.PNG", "g.jfif g.PNG",
    ]  # fmt: skip
    assert pairs(tmp_path, suffix=".JPG") == ["a.jpg a.png"]
    assert notes(tmp_path) == []


@pytest.mark.parametrize("other", ["a.JPG", "a.jpeg", "a.tiff", "a.PNG"])
def test_two_images_of_one_name_are_refused(tmp_path: Path, other: str) -> None:
    make(tmp_path, "images/a.jpg", f"images/{other}", "labels/a.png")
    refused(tmp_path, r"data\.train\.images: a\.\w+ and a\.\w+ in .*images share one name")
    if other != "a.JPG":  # an explicit suffix decides
        assert pairs(tmp_path, suffix=".jpg") == ["a.jpg a.png"]


def test_two_label_files_of_one_name_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "labels/a.png", "labels/a.PNG")
    refused(tmp_path, r"data\.train\.labels: a\.PNG and a\.png .* or set data\.label_suffix")


@pytest.mark.parametrize(("image", "label"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_that_look_the_same_are_the_same(tmp_path: Path, image: str, label: str) -> None:
    for name in ("café", "Å", "ガ"):  # with marks that have a composed form
        stems = (unicodedata.normalize(form, name) for form in (image, label))
        make(tmp_path, f"images/{next(stems)}.jpg", f"labels/{next(stems)}.png")
    assert len(pairs(tmp_path)) == 3
    make(tmp_path, "images/" + unicodedata.normalize(label, "café") + ".jpg")
    refused(tmp_path, "share one name")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "images/._a.jpg", "images/Thumbs.db", "images/IMG.HEIC")
    make(tmp_path, "images/.ipynb_checkpoints/a-checkpoint.jpg", "labels/a.png", "labels/b.png")
    make(tmp_path, "labels/._b.png", "labels/classes.txt")
    assert pairs(tmp_path) == ["a.jpg a.png"]
    junk = "2 hidden (._a.jpg, .ipynb_checkpoints); 2 of another type (IMG.HEIC, Thumbs.db)"
    assert notes(tmp_path) == [
        f"skipped in images: {junk}",
        "skipped in labels: 1 hidden (._b.png); 1 of another type (classes.txt)",
        "skipped in labels: 1 without an image (b.png)",
    ]


def test_results_of_earlier_calls_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "labels/a.png", "images/out/.predictions.jsonl")
    make(tmp_path, "images/out/b.png")
    assert pairs(tmp_path) == ["a.jpg a.png"]
    said = "1 hidden (out/.predictions.jsonl); 1 results of earlier calls (out/b.png)"
    assert notes(tmp_path) == [f"skipped in images: {said}"]
    (tmp_path / "images/a.jpg").unlink()
    refused(tmp_path, "images holds nothing but 1 hidden .*, 1 results of earlier calls")


def test_labels_beside_the_images(tmp_path: Path) -> None:
    make(tmp_path, "same/a.jpg", "same/a.png", "same/day/b.JPG", "same/day/b.PNG")
    assert pairs(tmp_path, "same", "same") == ["a.jpg a.png", "day/b.JPG day/b.PNG"]
    make(tmp_path, "in/a.jpg", "in/c.png", "in/labels/a.png", "in/labels/c.png")
    assert pairs(tmp_path, "in", "in/labels") == ["a.jpg a.png", "c.png c.png"]


def test_only_wanted_images_need_labels(tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "images/b.jpg", "labels/a.png")
    refused(tmp_path, "1 of 2 images have no label file; first: .*b.jpg, expected .*b.png; add")
    rules = PairRules("val", ["*"], ".png", select=lambda found: {"a": found.files["a"]})
    found = pair_files(tmp_path / "images", tmp_path / "labels", rules)
    assert [pair.name for pair in found.pairs] == ["a"]
    assert "1 that are not in the list" in found.notes[0]


def test_parts_of_names_as_suffixes(tmp_path: Path) -> None:
    make(tmp_path, "images/a_left.png", "images/a_right.png", "labels/a.png")
    assert pairs(tmp_path, suffix="_left.png") == ["a_left.png a.png"]


def test_a_data_set_of_mixed_types(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for stem, suffix in (("a", "jpg"), ("b", "PNG"), ("c", "tif")):
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{stem}.{suffix}")
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "images" / ".DS_Store").touch()
    split = {"images": "images", "labels": "labels"}
    data = build_dataset(
        FolderConfig.model_validate(
            {"root": tmp_path, "train": split, "val": split, "classes": ["x"]}
        ),
        "train",
    )
    assert isinstance(data, Folder)
    assert [(data[i].name, data[i].file_name) for i in range(3)] == [
        ("a", "a.jpg"), ("b", "b.PNG"), ("c", "c.tif")
    ]  # fmt: skip
    assert data.notes == (f"skipped in {tmp_path / 'images'}: 1 hidden (.DS_Store)",)
