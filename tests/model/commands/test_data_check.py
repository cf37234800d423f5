"""`maskformer data check`: what it says of data, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.command_line import Run
from helpers.label_folders import columns, write_pair
from helpers.recipes import TINY, write_recipe
from PIL import Image

SPLITS = {s: {"images": f"{s}/images", "labels": f"{s}/labels"} for s in ("train", "val")}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three training images of two sizes and two to validate on, all different."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "set"
    write_pair(folder / "train", "a", columns(0, 0, 1, 255))
    write_pair(folder / "train", "b", columns(0, 2, 2))
    write_pair(folder / "train", "c", columns(0, 1, 1))
    write_pair(folder / "val", "d", columns(0, 1, 1, 1))
    write_pair(folder / "val", "e", columns(1, 1, 1, 0, 0))
    return folder


def recipe(root: Path, data: dict[str, Any] | None = None, **sections: Any) -> Path:
    file = root.parent / "mine.yaml"
    values = {"format": "folder", "root": str(root), "classes": ["road", "tree", "sky"], **SPLITS}
    values |= data or {}
    file.write_text(yaml.safe_dump({"data": values, **sections}))
    return file


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the table by class."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_a_sound_set(run: Run, root: Path) -> None:
    write_pair(root / "val", "f", columns(2, 2, 0))
    code, out, err = run("data", "check", "--config", recipe(root))
    assert code == 0, err
    assert "train data: 3 images, 3x2 to 4x2 pixels in 2 sizes, most often 3x2 (2)\n" in out
    assert "val data: 3 images, 3x2 to 5x2 pixels in 3 sizes\n" in out
    assert rows(out) == {
        "road": ["3", "40.00 %", "3", "33.33 %"],
        "tree": ["2", "30.00 %", "2", "50.00 %"],
        "sky": ["1", "20.00 %", "1", "16.67 %"],
        "(void)": ["", "10.00 %", "", "0.00 %"],
    }
    folder = root.parent / "checks" / "mine"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png")) == [
        *(f"train/{name}.png" for name in "abc"),
        *(f"val/{name}.png" for name in "def"),
    ]
    assert out.endswith("Training can use this data: no warnings.\n")


def test_the_name_of_the_folder_is_that_of_the_recipe(run: Run, root: Path) -> None:
    recipe(root)
    code, out, _ = run("data", "check", "--config", "mine.yaml", "data.classes=[r, t, s]")
    assert code == 0
    assert "Samples with their labels drawn over are in checks/mine: look at them.\n" in out
    assert "t" in rows(out)
    (Path("checks") / "mine_3").symlink_to("nowhere")
    for name in ("mine_2", "mine_4"):
        assert f"are in checks/{name}: look" in run("data", "check", "--config", "mine.yaml")[1]


def test_the_picture_shows_the_labels(run: Run, root: Path) -> None:
    red = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    code, _, err = run("data", "check", "--config", recipe(root, {"colors": red}), "--output", "o")
    assert code == 0, err
    picture = np.asarray(Image.open("o/train/b.png"))
    half = picture[: picture.shape[0] * 2 // 3, picture.shape[1] // 2 :]
    tinted = half[(half.max(-1).astype(int) - half.min(-1)) > 100]
    assert {*tinted.argmax(-1).tolist()} == {0, 2}  # road and sky


def test_warnings_are_counted_and_harmless(run: Run, root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "images" / "Thumbs.db").write_text("")
    code, out, err = run("data", "check", "--config", recipe(root))
    assert code == 0, err
    assert "train data: skipped in" in out
    assert "warning: val data: 1 of 3 classes never occur: sky\n" in out
    assert "warning: train data: it has classes that val lacks: sky\n" in out
    assert out.endswith("Training can use this data: 2 warnings, listed above.\n")


@pytest.mark.parametrize(
    ("sections", "warned"),
    [
        ({"model": {"decoder": {"queries": 1}}}, True),
        ({"model": {"decoder": {"queries": 2}}}, False),
        ({"model": {"architecture": "per_pixel", "decoder": {"queries": 1}}}, False),
    ],
)
def test_images_with_more_segments_than_queries(
    run: Run, root: Path, sections: dict[str, Any], warned: bool
) -> None:
    write_pair(root / "val", "f", columns(2, 2, 0))
    code, out, err = run("data", "check", "--config", recipe(root, **sections))
    assert code == 0, err
    text = "warning: train data: an image has 2 segments, more than the 1 queries of the model"
    assert (text in out) == warned
    assert out.endswith(f"this data: {'1 warning, listed above' if warned else 'no warnings'}.\n")


def test_images_in_both_splits(run: Run, root: Path) -> None:
    """The same name and the same bytes; either alone says nothing."""
    write_pair(root / "val", "a", columns(0, 2, 2, 255))
    write_pair(root / "val", "again", columns(0, 0, 1, 255))  # the bytes of train's a
    write_pair(root / "val", "b", columns(0, 1, 1, 1, 1, 1))  # the name of train's b
    file = recipe(root)
    code, out, _ = run("data", "check", "--config", file)
    assert code == 0
    assert "warning: val data: 1 image of the same name and bytes is in train too (" in out
    assert "in train too (a.jpg), so scores" in out
    assert "same folder" not in out
    same = {**SPLITS, "val": SPLITS["train"]}
    out = run("data", "check", "--config", recipe(root, same))[1]
    assert "3 images of the same name and bytes are in train too" in out
    assert "both splits read the same folder: correct data.val, or remove" in out


def test_training_warns_of_images_in_both_splits(run: Run, root: Path) -> None:
    same = {**SPLITS, "val": SPLITS["train"], "augmentation": TINY["data"]["augmentation"]}
    file = recipe(root, {**same, "test_short_side": 32}, model=TINY["model"], train=TINY["train"])
    code, out, err = run("train", "--cpu", "--config", file, "--output", "run", "train.steps=1")
    assert code == 0, err
    assert "warning: val data: 3 images of the same name and bytes are in train too" in out


def test_all_problems_are_listed(run: Run, root: Path) -> None:
    (root / "train" / "images" / "a.jpg").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(root / "train" / "images" / "b.jpg")
    for name, value in (("x", 7), ("y", 9)):
        write_pair(root / "val", name, columns(0, value, 1))
    code, out, _ = run("data", "check", "--config", recipe(root))
    assert code == 1
    assert "train data: 1 of 3 images can be used, 3x2 pixels" in out
    assert "val data: 2 of 4 images can be used" in out
    assert "error: train data: image file" in out
    assert f"error: train data: label file {root}/train/labels/b.png is 3x2 pixels" in out
    assert "error: val data: 2 label files have the values 7 (2 pixels), 9 (2 pixels)" in out
    assert out.count("holds for 1 other: y.jpg\n") == 1
    assert "never occur" not in out  # not all was seen
    assert out.endswith(
        "Training would reject this data: 3 problems and no warnings, listed above.\n"
    )


def test_what_many_files_have_in_common_is_said_once(run: Run, root: Path) -> None:
    for number in range(13):
        write_pair(root / "val", f"n{number:02}", columns(*range(3)))
        size = (4 + number, 2)  # the message differs in figures, too
        Image.new("L", size).save(root / "val" / "labels" / f"n{number:02}.png")
    code, out, _ = run("data", "check", "--config", recipe(root))
    assert code == 1
    (line,) = (line for line in out.splitlines() if line.startswith("error: "))
    assert f"{root}/val/labels/n00.png is 4x2 pixels" in line
    assert "the same holds for 12 others: n01.jpg, n02.jpg, " in line
    assert line.endswith(", n10.jpg and 2 more")


def test_a_split_that_cannot_be_read_hides_nothing_of_the_other(run: Run, root: Path) -> None:
    (root / "val" / "labels" / "d.png").unlink()
    code, out, _ = run("data", "check", "--config", recipe(root))
    assert code == 1
    assert "train data: 3 images" in out
    assert "error: val: 1 of 2 images have no label file" in out
    assert Path("checks/mine/train/a.png").is_file()
    assert not Path("checks/mine/val").exists()


def test_nothing_can_be_read(run: Run, root: Path) -> None:
    code, out, _ = run("data", "check", "--config", recipe(root), "data.root=elsewhere")
    assert code == 1
    assert out.count("there is no folder elsewhere/") == 2
    assert "look at them" not in out
    assert not Path("checks").exists()


def test_masks_of_0_and_255(run: Run, root: Path) -> None:
    for split, name in (("train", "abc"), ("val", "de")):
        for letter in name:
            write_pair(root / split, letter, columns(0, 255, 255))
    code, out, _ = run("data", "check", "--config", recipe(root), "data.classes=[wall, crack]")
    assert code == 1
    assert "error: train data: the label files hold only 0 and 255" in out
    assert "set data.label_map: {0: wall, 255: crack}" in out


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"model": {"num_classes": 7}}, "7, but the data set has 3 classes; remove the key"),
        (
            {"model": {"num_classes": 7}, "data": {"classes": None}},
            "7, but the data set has 3 classes: the largest value in the training labels",
        ),
        ({"criterion": {"class_weights": {"treee": 2}}}, "did you mean 'tree'?"),
        ({"eval": {"panoptic": True}, "data": {"things": ["tree"]}}, "data.things names tree"),
        (
            {"eval": {"panoptic": True}, "train": {"best_metric": "pq_things"}},
            "none of the data set's classes are things",
        ),
    ],
)
def test_what_does_not_fit_the_data(
    run: Run, root: Path, sections: dict[str, Any], text: str
) -> None:
    data = sections.pop("data", {})
    code, out, _ = run("data", "check", "--config", recipe(root, data, **sections))
    assert code == 1
    assert "error: " in out
    assert text in out
    assert "1 problem and" in out


def test_splits_of_other_classes(run: Run, root: Path) -> None:
    category = {"id": 1, "name": "car"}
    for split, name in (("train", "car"), ("val", "van")):
        images = [
            {"id": k, "file_name": file.name}
            for k, file in enumerate(sorted((root / split / "images").iterdir()))
        ]
        box = {"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}
        content = {
            "images": images,
            "annotations": [box],
            "categories": [{**category, "name": name}],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    data = {"format": "coco_instances", "root": str(root)}
    for split in ("train", "val"):
        data[split] = {"images": f"{split}/images", "annotations": f"{split}.json"}  # type: ignore[assignment]
    file = root.parent / "coco.yaml"
    file.write_text(yaml.safe_dump({"data": data}))
    code, out, _ = run("data", "check", "--config", file)
    assert code == 1
    assert "class 1 is car in train and van in val" in out
    assert rows(out)["car"][0] == rows(out)["car"][2] == "1"  # one image, one object
    assert "val data:" not in out


def test_no_file_is_written_over(run: Run, root: Path) -> None:
    file = recipe(root)
    (root.parent / "full").mkdir()
    (root.parent / "full" / "mine.txt").write_text("mine")
    for folder in (root.parent / "full", root / "train" / "images", root.parent):
        before = sorted(folder.rglob("*"))
        code, _, err = run("data", "check", "--config", file, "--output", folder)
        assert code == 1
        assert "existing files are not overwritten" in err
        assert sorted(folder.rglob("*")) == before
    code, _, err = run("data", "check", "--config", file, "--output", file)
    assert code == 1
    assert "is a file" in err


def test_generated_images_can_be_checked(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "data", "check", "--config", write_recipe(tmp_path), "--output", tmp_path / "o"
    )
    assert code == 0, err
    assert "train data: 12 images, 64x64 pixels" in out
    assert "objects" in out
    assert len([*(tmp_path / "o" / "train").iterdir()]) == 6
