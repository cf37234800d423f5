"""`maskformer data prepare`: archives that are converted once."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_format import check_panoptic
from helpers.command_line import Run
from helpers.label_folders import data_config
from helpers.official.layouts import save, write_ade20k, write_ade20k_full
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maskformer.data import build_dataset
from maskformer.data.label_reader import read_labels
from maskformer.data.preparation.ade20k_full import (
    VOID,
    class_table,
    prepare_ade20k_full,
    shrink_image,
    shrink_labels,
    shrunk_size,
)
from maskformer.data.preparation.ade20k_panoptic import prepare_ade20k_panoptic
from maskformer.errors import DatasetError, DiskFullError

STREET = "training/ADE_train_00016869"
BATHROOM = "training/ADE_train_00000009"


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        file.relative_to(root).as_posix(): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in root.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def full(tmp_path: Path) -> Path:
    write_ade20k_full(tmp_path)
    return tmp_path


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_ade20k(tmp_path)
    return tmp_path


def test_ade20k_full(full: Path, run: Run) -> None:
    before = snapshot(full)
    code, out, _ = run("data", "prepare", "ade20k_full", full)
    assert code == 0, out
    assert "3 images: 6 files written" in out
    after = snapshot(full)
    assert before.items() <= after.items()
    source = full / "images" / "ADE" / "training" / "urban" / "street" / "ADE_train_00016869"
    assert (full / "images_detectron2" / f"{STREET}.jpg").read_bytes() == source.with_suffix(
        ".jpg"
    ).read_bytes()
    with Image.open(full / "annotations_detectron2" / f"{STREET}.tif") as labels:
        assert labels.mode == "I;16"
    labels = read_labels(full / "annotations_detectron2" / f"{STREET}.tif")
    assert set(np.unique(labels)) == {0, 1, 2, VOID}
    with Image.open(full / "images_detectron2" / f"{BATHROOM}.jpg") as image:
        assert image.size == (round(700 / 515 * 512), 512)
    assert read_labels(full / "annotations_detectron2" / f"{BATHROOM}.tif").shape == (512, 696)
    assert (full / "annotations_detectron2" / "validation" / "ADE_val_00000123.tif").exists()


def test_a_second_run_goes_on_and_writes_over_nothing(full: Path, run: Run) -> None:
    prepare_ade20k_full(full)
    lost = full / "annotations_detectron2" / f"{BATHROOM}.tif"
    expected = lost.read_bytes()
    lost.unlink()
    own = full / "images_detectron2" / f"{STREET}.jpg"
    own.write_bytes(b"the user's")
    (lost.parent / ".0a1b2c3d.partial").write_bytes(b"half")
    before = snapshot(full)
    code, out, _ = run("data", "prepare", "ade20k_full", full)
    assert (code, "3 images: 1 files written" in out) == (0, True)
    assert lost.read_bytes() == expected
    after = snapshot(full)
    assert set(before) - set(after) == {"annotations_detectron2/training/.0a1b2c3d.partial"}
    assert set(after) - set(before) == {f"annotations_detectron2/{BATHROOM}.tif"}
    assert all(after[name] == before[name] for name in set(before) & set(after))


def test_the_class_table_follows_the_official_order() -> None:
    table = class_table()
    assert (table[2978], table[312], table[2420], table[2855]) == (0, 1, 2, 3)
    assert sorted(table[table != VOID]) == list(range(847))


def test_real_codes_become_classes(real_data: Path) -> None:
    """The raw labels of an image whose 150 published classes are known."""
    folder = real_data / "ade20k_sample" / "convertFromADE"
    raw = np.asarray(Image.open(folder / "ADE_train_00000970_raw.png")).astype(int)
    published = read_labels(folder / "ADE_train_00000970_challenge.png")
    classes = class_table()[raw[..., 0] // 10 * 256 + raw[..., 1]]
    classes = shrink_labels(classes, shrunk_size(*classes.shape))
    assert classes.shape == (512, 683) == published.shape
    # Tree is class 3 here and number 5 there, building 1 and 2: the same pixels but for edges.
    for ours, theirs in ((3, 5), (1, 2)):
        both = ((classes == ours) & (published == theirs)).sum()
        assert both / ((classes == ours) | (published == theirs)).sum() > 0.98


def test_sizes_and_positions_of_the_official_shrinking() -> None:
    assert shrunk_size(512, 900) == (512, 900)
    assert shrunk_size(768, 1024) == (512, 683)
    assert shrunk_size(1025, 769) == (682, 512)
    ramp = np.arange(6).repeat(5).reshape(6, 5)
    assert shrink_labels(ramp, (4, 5))[:, 0].tolist() == [0, 1, 3, 4]
    pixels = np.repeat((ramp * 40).astype(np.uint8)[..., None], 3, 2)
    # Centres of pixels: 0.25, 1.75, 3.25 and 4.75 of the six rows.
    assert shrink_image(pixels, (4, 5))[:, 0, 0].tolist() == [10, 70, 130, 190]


@pytest.mark.parametrize("kind", ["no_image", "grey", "size", "broken"])
def test_bad_files_are_named_and_the_others_done(full: Path, kind: str) -> None:
    stem = full / "images" / "ADE" / "training" / "urban" / "street" / "ADE_train_00016869"
    labels = stem.with_name(f"{stem.name}_seg.png")
    if kind == "no_image":
        stem.with_suffix(".jpg").unlink()
    elif kind == "broken":
        labels.write_bytes(labels.read_bytes()[:100])
    else:
        save(labels, np.zeros((45, 67) if kind == "grey" else (45, 66, 3), np.uint8))
    said = {"no_image": "does not exist", "grey": "has L pixels", "size": "66x45", "broken": "read"}
    with pytest.raises(DatasetError, match=r"1 of 3 images cannot be prepared") as caught:
        prepare_ade20k_full(full)
    assert said[kind] in str(caught.value)
    assert "ADE_train_00016869" in str(caught.value)
    assert (full / "annotations_detectron2" / f"{BATHROOM}.tif").exists()


@pytest.mark.parametrize("place", [(vars(shutil), "copyfile"), (Image.SAVE, "JPEG")])
@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, PermissionError)]
)
def test_what_cannot_be_written_ends_the_run(
    full: Path,
    place: tuple[dict[str, Any], str],
    number: int,
    error: type[OSError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setitem(*place, refuse)
    with pytest.raises(error, match="refused"):
        prepare_ade20k_full(full)


def test_another_folder_is_refused(tmp_path: Path, run: Run) -> None:
    code, _, error = run("data", "prepare", "ade20k_full", tmp_path)
    assert (code, "expected the folder of the official archive" in error) == (1, True)
    code, _, error = run("data", "prepare", "ade20k_panoptic", tmp_path)
    assert (code, "ADEChallengeData2016 with annotations_instance" in error) == (1, True)
    assert not list(tmp_path.iterdir())


def test_ade20k_panoptic(scenes: Path, run: Run) -> None:
    before = snapshot(scenes)
    code, out, _ = run("data", "prepare", "ade20k_panoptic", scenes)
    assert code == 0, out
    assert "3 images: 8 files written" in out
    after = snapshot(scenes)
    assert before.items() <= after.items()
    for short, count in (("train", 2), ("val", 1)):
        entries = check_panoptic(
            scenes / f"ade20k_panoptic_{short}.json", scenes / f"ade20k_panoptic_{short}"
        )
        assert len(entries) == count
        classes = [[s["category_id"] for s in entry["segments_info"]] for entry in entries]
        # Wall and sky are stuff; a bed, two people and a flag are things.
        assert classes == [[0, 2, 7, 12, 149, 12]] * count
    content = json.loads((scenes / "ade20k_panoptic_val.json").read_text())
    assert sum(category["isthing"] for category in content["categories"]) == 100
    assert content["images"][0] == {
        "id": "ADE_val_00000001", "file_name": "ADE_val_00000001.jpg", "width": 67, "height": 45
    }  # fmt: skip
    labels = read_labels(scenes / "annotations_detectron2" / "validation" / "ADE_val_00000001.png")
    source = read_labels(scenes / "annotations" / "validation" / "ADE_val_00000001.png")
    assert np.array_equal(labels, np.where(source == 0, 255, source - 1))


def test_the_panoptic_recipe_reads_what_was_prepared(scenes: Path) -> None:
    prepare_ade20k_panoptic(scenes)
    split = {
        "images": "images/validation",
        "panoptic": "ade20k_panoptic_val",
        "annotations": "ade20k_panoptic_val.json",
        "semantic_labels": "annotations_detectron2/validation",
    }
    dataset = build_dataset(data_config("coco_panoptic", scenes, split), "val")
    sample = dataset[0]
    objects = sample.labels == 12
    assert int(objects.sum()) == 2
    corner = sample.segments[:4, :9]
    assert (corner == corner[0, 0]).all()
    assert sample.labels[corner[0, 0]] == 12
    assert sample.classes is not None
    assert torch.equal(sample.classes.unique(), torch.tensor([-1, 0, 2, 7, 12, 149]))


def test_an_interrupted_panoptic_run_goes_on(scenes: Path, run: Run) -> None:
    prepare_ade20k_panoptic(scenes)
    expected = {name: content for name, (content, _) in snapshot(scenes).items()}
    (scenes / "ade20k_panoptic_train.json").unlink()
    (scenes / "ade20k_panoptic_train" / "ADE_train_00000002.png").unlink()
    (scenes / "annotations_detectron2" / "validation" / "ADE_val_00000001.png").unlink()
    kept = scenes / "ade20k_panoptic_train" / "ADE_train_00000001.png"
    before = kept.stat().st_mtime_ns
    code, out, _ = run("data", "prepare", "ade20k_panoptic", scenes)
    assert (code, "3 images: 3 files written" in out) == (0, True)
    assert {name: content for name, (content, _) in snapshot(scenes).items()} == expected
    assert kept.stat().st_mtime_ns == before


def test_lost_panoptic_files_come_back_where_the_json_file_describes_them(
    scenes: Path, run: Run
) -> None:
    prepare_ade20k_panoptic(scenes)
    expected = {name: content for name, (content, _) in snapshot(scenes).items()}
    lost = scenes / "ade20k_panoptic_train" / "ADE_train_00000002.png"
    lost.unlink()
    shutil.rmtree(scenes / "ade20k_panoptic_val")
    code, out, _ = run("data", "prepare", "ade20k_panoptic", scenes)
    assert (code, "3 images: 2 files written" in out) == (0, True)
    assert {name: content for name, (content, _) in snapshot(scenes).items()} == expected
    file = scenes / "ade20k_panoptic_train.json"
    other = json.loads(file.read_text())
    other["annotations"][1]["segments_info"][0]["id"] = 77
    for text in (json.dumps(other), "[]", '{"annotations": [7]}', "{bad"):
        file.write_text(text)
        assert prepare_ade20k_panoptic(scenes).written == 0
        lost.unlink()
        with pytest.raises(DatasetError, match=r"ADE_train_00000002\.png is missing, and .*\.json"):
            prepare_ade20k_panoptic(scenes)
        assert (file.read_text(), lost.exists()) == (text, False)
        file.unlink()
        prepare_ade20k_panoptic(scenes)
        assert {name: content for name, (content, _) in snapshot(scenes).items()} == expected


SEGMENT = {"id": 1, "category_id": 0, "area": 9, "bbox": [0, 0, 3, 3], "iscrowd": 0}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{bad",
        '"junk"',
        "[7]",
        json.dumps(SEGMENT),
        json.dumps([{**SEGMENT, "area": "9"}]),
        json.dumps([{**SEGMENT, "bbox": [0, 0, 3]}]),
        json.dumps([{**SEGMENT, "iscrowd": None}]),
        "[" * 100_000,
    ],
)
def test_panoptic_files_of_other_programs_are_named(scenes: Path, text: str | None) -> None:
    prepare_ade20k_panoptic(scenes)
    file = scenes / "ade20k_panoptic_train" / "ADE_train_00000001.png"
    content = PngInfo()
    if text is not None:
        content.add_text("segments_info", text)
    with Image.open(file) as image:
        image.save(file, pnginfo=content)
    (scenes / "ade20k_panoptic_train.json").unlink()
    message = r"ADE_train_00000001\.png was not written by this command"
    with pytest.raises(DatasetError, match=message):
        prepare_ade20k_panoptic(scenes)
    assert not (scenes / "ade20k_panoptic_train.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("two", r"the object 1 the categories \[1, 2\]"),
        ("outside", r"the object 1 the categories \[101\]"),
        ("grey", "has L pixels"),
        ("size", "67x44"),
        ("missing", "does not exist"),
        ("label", "has the value 151"),
    ],
)
def test_bad_instances_are_named(scenes: Path, change: str, message: str) -> None:
    file = scenes / "annotations_instance" / "validation" / "ADE_val_00000001.png"
    pixels = np.array(Image.open(file))
    first = pixels[..., 1] == 1
    if change == "two":
        pixels[..., 0][first & (first.cumsum(1) > 3)] = 2
    elif change == "outside":
        pixels[..., 0][first] = 101
    if change == "missing":
        file.rename(file.with_name("ADE_val_00000002.png"))
    elif change == "label":
        save(scenes / "annotations" / "validation" / file.name, np.full((45, 67), 151, np.uint8))
    else:
        save(file, {"grey": pixels[..., 0], "size": pixels[:44]}.get(change, pixels))
    with pytest.raises(DatasetError, match=message) as caught:
        prepare_ade20k_panoptic(scenes)
    assert "ADE_val_00000001.png" in str(caught.value)
    assert not (scenes / "ade20k_panoptic_val.json").exists()
