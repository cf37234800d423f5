"""`maskformer init`: what it finds in folders of every kind, and the recipe that it writes."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskformer.cli import app
from maskformer.config import Config, load_config
from maskformer.data import build_dataset, check_dataset
from maskformer.data.layout import coco_layout, folder_layout
from maskformer.data.layout import pairs as pairs_module
from maskformer.data.layout import survey as survey_module
from maskformer.data.layout.folder_layout import FolderLayout
from maskformer.data.layout.survey import survey
from maskformer.errors import DatasetError, UsageError

RNG = np.random.default_rng(0)


def image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(file)


def labels(file: Path, values: Sequence[int] = (0, 1, 2), dtype: type = np.uint8) -> None:
    """All values, each at least once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(values, dtype), (40, 60))
    Image.fromarray(pixels).save(file)


def recipe_for(folder: Path) -> Config:
    """Writes the recipe, reads it back and checks that its data can be used."""
    file = folder.parent / "recipe.yaml"
    result = CliRunner().invoke(
        app, ["init", str(folder), "--output", str(file)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert f"maskformer data check --config {file}" in result.output
    assert f"maskformer train --config {file}" in result.output
    config = load_config(file)
    for split in ("train", "val"):
        dataset = build_dataset(config.data, split)
        assert len(dataset) > 0
        check_dataset(dataset)
    return config


def test_training_and_validation_folders(tmp_path: Path) -> None:
    """As in ADE20K, with its table of classes: 0 is of no class."""
    for split, word in (("train", "training"), ("val", "validation")):
        for k in range(3):
            image(tmp_path / f"ade/images/{word}/{split}_{k}.jpg")
            labels(tmp_path / f"ade/annotations/{word}/{split}_{k}.png", range(4))
    (tmp_path / "ade/objectInfo150.txt").write_text("Idx\tName\n1\twall\n2\tsky\n3\tdoor, gate\n")
    data = recipe_for(tmp_path / "ade").data
    assert data.train.images == Path("images/training")
    assert data.val.labels == Path("annotations/validation")
    assert (data.classes, data.label_offset) == (("wall", "sky", "door, gate"), 1)
    assert set(data.ignore) == {0, 255}


def test_long_suffixes_and_other_files_beside_the_labels(tmp_path: Path) -> None:
    """As in Cityscapes: class numbers, object numbers and pictures lie in one folder."""
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("bonn",))):
        for city in cities:
            for k in range(2):
                name = f"{city}_{k:06d}_000019"
                target = tmp_path / "city/gtFine" / split / city
                image(tmp_path / f"city/leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
                image(target / f"{name}_gtFine_color.png")
                labels(target / f"{name}_gtFine_labelIds.png", range(5))
                labels(target / f"{name}_gtFine_instanceIds.png", range(0, 24000, 11), np.uint16)
    data = recipe_for(tmp_path / "city").data
    assert (data.train.images, data.train.labels) == (
        Path("leftImg8bit/train"),
        Path("gtFine/train"),
    )
    assert data.label_suffix == "_gtFine_labelIds.png"
    assert len(data.classes) == 5


def test_masks_of_0_and_255_beside_their_images(tmp_path: Path) -> None:
    for k in range(4):
        image(tmp_path / f"cracks/{k}.jpg")
        labels(tmp_path / f"cracks/{k}_mask.png", (0, 255))
    config = recipe_for(tmp_path / "cracks")
    assert config.data.label_map == {0: "background", 255: "object"}
    assert config.data.label_suffix == "_mask.png"
    sample = build_dataset(config.data, "train")[0]
    assert sample.labels.tolist() == [0, 1]


def test_splits_above_the_folders(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for k in range(2):
            image(tmp_path / f"cells/{split}/images/{k}.tif")
            labels(tmp_path / f"cells/{split}/masks/{k}.tif", (0, 1))
    data = recipe_for(tmp_path / "cells").data
    assert (data.train.images, data.val.images) == (Path("train/images"), Path("valid/images"))


def test_voc_with_objects_and_lists(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for k in range(4):
        image(root / f"JPEGImages/2007_{k}.jpg")
        labels(root / f"SegmentationClass/2007_{k}.png", (0, 1, 255))
        labels(root / f"SegmentationObject/2007_{k}.png", (0, 1, 255))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n2007_2\n")
    (lists / "val.txt").write_text("2007_3\n")
    (root / "class_names.txt").write_text("_background_\ncat\n")
    config = recipe_for(root)
    assert config.eval.panoptic
    assert config.data.train.objects == Path("SegmentationObject")
    assert len(build_dataset(config.data, "train")) == 3
    assert build_dataset(config.data, "val")[0].name == "2007_3"


def test_images_of_several_types_and_a_list_of_windows(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.webp", "d.jpeg"):
        image(tmp_path / f"set/img/{name}")
        labels(tmp_path / f"set/mask/{name[0]}.png", (0, 1))
    (tmp_path / "set/classes.txt").write_bytes("Straße\r\nGras\r\n".encode("utf-8-sig"))
    data = recipe_for(tmp_path / "set").data
    assert (data.image_suffix, data.classes) == (("*",), ("Straße", "Gras"))


def test_one_json_per_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(60):
        (tmp_path / f"{k}.json").write_text(json.dumps({"shapes": [], "imagePath": f"{k}.jpg"}))
    read = []
    monkeypatch.setattr(coco_layout, "_read", lambda file: read.append(file))
    with pytest.raises(DatasetError):
        survey(tmp_path)
    assert len(read) == 1


def test_numbers_with_gaps_become_a_map(tmp_path: Path) -> None:
    for k in range(3):
        image(tmp_path / f"set/img/{k}.png")
        labels(tmp_path / f"set/label/{k}.png", (7, 40, 200))
    data = recipe_for(tmp_path / "set").data
    assert data.label_map == {7: "class 7", 40: "class 40", 200: "class 200"}


def coco_json(root: Path, **content: object) -> None:
    (root / "annotations.json").write_text(json.dumps(content))


def test_coco_instances(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    for k in range(3):
        image(root / f"images/{k}.jpg")
    box = [[5, 5, 30, 5, 30, 30, 5, 30]]
    coco_json(
        root,
        images=[{"id": k, "file_name": f"{k}.jpg", "width": 60, "height": 40} for k in range(3)],
        annotations=[
            {"id": k, "image_id": k, "category_id": 1, "segmentation": box, "bbox": [5, 5, 25, 25],
             "area": 625, "iscrowd": 0}
            for k in range(3)
        ],
        categories=[{"id": 1, "name": "cat"}],
    )  # fmt: skip
    config = recipe_for(root)
    assert config.data.format == "coco_instances"
    assert config.eval.panoptic
    assert config.eval.instances


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "holds no images"),
        (["a.jpg", "b.jpg"], "holds images, but no label files for them"),
        (["one/img/a.jpg", "one/mask/a.png", "two/img/a.jpg", "two/mask/a.png"], "several data"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, files: list[str], expected: str) -> None:
    for name in files:
        (labels if "mask" in name else image)(tmp_path / name)
    with pytest.raises(DatasetError, match=expected):
        survey(tmp_path)


def test_shards_are_named(tmp_path: Path) -> None:
    for k in range(4):
        (tmp_path / f"train-{k}.tar").touch()
    with pytest.raises(DatasetError, match=r"tar files \(train-0.tar, .*, \.\.\.\).* webdataset, "):
        survey(tmp_path)


def test_polygons_of_labelme_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.jpg"}))
    with pytest.raises(DatasetError, match="labelme2voc"):
        survey(tmp_path)


def test_a_recipe_is_never_overwritten(tmp_path: Path) -> None:
    for k in range(2):
        image(tmp_path / f"set/img/{k}.png")
        labels(tmp_path / f"set/mask/{k}.png")
    file = tmp_path / "mine.yaml"
    file.write_text("base: camvid\n")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "set"), "--output", str(file)])
    assert result.exit_code != 0
    assert "exists" in str(result.exception)
    assert file.read_text() == "base: camvid\n"
    shown = CliRunner().invoke(app, ["init", str(tmp_path / "set"), "--output", "-"])
    assert shown.stdout.lstrip().startswith("# Made by")


REAL = (
    "camvid",
    "ade20k_sample",
    "coco_panoptic_sample",
    "labelme_sample/semantic_segmentation/data_dataset_voc",
    "labelme_sample/instance_segmentation/data_dataset_voc",
    "labelme_sample/instance_segmentation/data_dataset_coco",
)


@pytest.mark.parametrize("name", REAL)
def test_real_folders(real_data: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "recipe.yaml"
    result = CliRunner().invoke(app, ["init", str(real_data / name), "--output", str(file)])
    assert result.exit_code == 0, result.output
    config = load_config(file)
    for split in ("train", "val"):
        check_dataset(build_dataset(config.data, split), limit=20)
    if name == "camvid":  # as the others, but ten seconds of images
        return
    drawn = tmp_path / "checks"
    result = CliRunner().invoke(app, ["data", "check", "-c", str(file), "--output", str(drawn)])
    assert result.exit_code == 0, result.output
    assert {folder.name for folder in drawn.iterdir()} == {"train", "val"}


def test_bands_and_depth_of_images(tmp_path: Path) -> None:
    """What training would ask for is found by looking."""
    for k in range(3):
        bands = np.full((40, 60, 5), 200 + k, np.uint16)
        bands[:, 30:] = 2000
        grey = bands[..., 0]
        for name in ("sat", "xray", "float", "deep"):
            (tmp_path / name / "set" / "img").mkdir(parents=True, exist_ok=True)
            labels(tmp_path / name / "set" / "mask" / f"{k}.png")
        np.save(tmp_path / "sat" / "set" / "img" / f"{k}.npy", bands)
        Image.fromarray(grey).save(tmp_path / "xray" / "set" / "img" / f"{k}.png")
        Image.fromarray(grey.astype(np.float32) / 4000).save(tmp_path / f"float/set/img/{k}.tif")
        Image.fromarray(grey * 30).save(tmp_path / "deep" / "set" / "img" / f"{k}.png")
    for name, channels, value_range in (
        ("sat", 5, (0, 2047)),
        ("xray", 3, (0, 2047)),
        ("float", 3, (0, 1)),
        ("deep", 3, None),  # 16 bits that are used
    ):
        config = recipe_for(tmp_path / name / "set")
        assert (config.data.channels, config.data.value_range) == (channels, value_range), name
        assert config.model.num_channels == channels
        levels = build_dataset(config.data, "train")[0].image.unique()
        assert len(levels) == 2, name


def test_images_of_several_kinds(tmp_path: Path) -> None:
    for k, count in enumerate((4, 5)):
        (tmp_path / "set/img").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"set/img/{k}.npy", np.zeros((40, 60, count), np.uint8))
        labels(tmp_path / f"set/mask/{k}.png")
    with pytest.raises(DatasetError, match="holds images of 4 and 5 channels"):
        survey(tmp_path / "set")


def coco_split(root: Path, annotations: str, images: str, names: Sequence[str]) -> None:
    """Images in a folder of their own, with a JSON that calls them by their names alone."""
    for name in names:
        image(root / images / name)
    box = {"bbox": [5, 5, 25, 25], "segmentation": [[5, 5, 30, 5, 30, 30, 5, 30]], "area": 625}
    content = {
        "images": [
            {"id": k, "file_name": name, "width": 60, "height": 40} for k, name in enumerate(names)
        ],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, **box}
            for k in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "folders", [("train2017", "val2017"), ("images/train", "images/val"), ("a/val", "b/train")]
)
def test_splits_with_the_same_names(tmp_path: Path, folders: tuple[str, str]) -> None:
    root = tmp_path / "coco"
    for folder in folders:
        split = "train" if "train" in folder else "val"
        coco_split(root, f"annotations/{split}2017.json", folder, ["1.jpg", "2.jpg"])
    data = recipe_for(root).data
    assert {str(data.train.images), str(data.val.images)} == {*folders}
    assert "train" in str(data.train.images)


def test_a_json_beside_the_images_of_each_split(tmp_path: Path) -> None:
    """As Roboflow exports them."""
    root = tmp_path / "robo"
    for split in ("train", "valid", "test"):
        coco_split(root, f"{split}/_annotations.coco.json", split, ["1.jpg", "2.jpg"])
    data = recipe_for(root).data
    assert (data.train.images, data.val.images) == (Path("train"), Path("valid"))
    assert data.val.annotations == Path("valid/_annotations.coco.json")


@pytest.mark.parametrize(
    "damage",
    [
        {"annotations": [{"segments_info": [], "file_name": "x.png"}, 5]},
        {"annotations": [{"segments_info": [], "file_name": ["0.png"]}]},
        {"annotations": [{"segments_info": [], "file_name": ""}]},
        {"annotations": [{"segments_info": [], "file_name": "/"}]},
        {"annotations": [{"segmentation": []}], "images": [{"file_name": ["1.jpg"]}]},
        {"annotations": [{"segmentation": []}], "images": [{"file_name": {}}, None]},
    ],
)
def test_a_damaged_json_beside_label_files(tmp_path: Path, damage: dict[str, object]) -> None:
    """What its entries say of files is no name: it describes no data set, and others may."""
    for k in range(3):
        image(tmp_path / f"set/img/{k}.jpg")
        labels(tmp_path / f"set/mask/{k}.png")
    (tmp_path / "set/a.json").write_text(json.dumps(damage))
    assert recipe_for(tmp_path / "set").data.format == "folder"


@pytest.mark.parametrize("name", ["", "\t", "\t\tb", f"\t{'x' * 200_000}"])
def test_a_table_of_classes_in_which_a_name_is_missing_or_too_long(
    tmp_path: Path, name: str
) -> None:
    for k in range(3):
        image(tmp_path / f"set/img/{k}.jpg")
        labels(tmp_path / f"set/mask/{k}.png")
    (tmp_path / "set/classes.txt").write_text(f"Idx\tName\tNote\n1\tsky\tblue\n2{name}\n3\tsea")
    assert recipe_for(tmp_path / "set").data.classes == ("class 0", "class 1", "class 2")


def test_commands_that_a_shell_takes_as_they_are_printed(tmp_path: Path) -> None:
    root = tmp_path / "my $HOME"
    for k in range(3):
        image(root / f"img/{k}.jpg")
        labels(root / f"mask/{k}.png")
    file = tmp_path / "it's mine.yaml"
    result = CliRunner().invoke(app, ["init", str(root), "--output", str(file)])
    commands = [shlex.split(line) for line in result.output.splitlines()[1:]]
    assert commands == [
        ["maskformer", "data", "check", "--config", str(file)],
        ["maskformer", "train", "--config", str(file)],
    ]
    asked = ["train", str(root)], ["info", str(root)]
    for words in asked:
        shown = CliRunner(env={"COLUMNS": "1000"}).invoke(app, words)
        assert f"maskformer init '{root}' writes" in f"{shown.output} {shown.exception}"


def test_folders_that_nothing_tells_apart(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    coco_split(root, "cats.json", "small", ["1.jpg", "2.jpg"])
    coco_split(root, "cats.json", "large", ["1.jpg", "2.jpg"])
    file = tmp_path / "recipe.yaml"
    CliRunner().invoke(app, ["init", str(root), "--output", str(file)], catch_exceptions=False)
    assert "# CHECK: small has files of the same names" in file.read_text()


def color_labels(file: Path, colors: Sequence[tuple[int, int, int]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(colors, np.uint8), (40, 60, 3))
    Image.fromarray(pixels).save(file)


def test_labels_whose_colours_are_the_classes(tmp_path: Path) -> None:
    for k in range(3):
        image(tmp_path / f"set/img/{k}.jpg")
        color_labels(tmp_path / f"set/label_color/{k}.png", [(0, 0, 0), (0, 0, 255), (255, 0, 0)])
    data = recipe_for(tmp_path / "set").data
    assert data.label_map == {
        "#000000": "background",
        "#0000ff": "class 0000ff",
        "#ff0000": "class ff0000",
    }
    assert data.ignore == ()


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        (".jpg", "0.jpg is compressed as JPEG"),
        (".png", "if each colour is a class, set data.label_map"),
    ],
)
def test_why_files_called_like_labels_hold_none(tmp_path: Path, suffix: str, expected: str) -> None:
    for k in range(3):
        image(tmp_path / f"images/{k}.png")
        image(tmp_path / f"labels/{k}{suffix}")
    with pytest.raises(DatasetError, match=expected):
        survey(tmp_path)


def test_folders_that_share_their_names_take_no_time_squared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the frames of many videos: any of these folders could hold the labels of any other."""
    scenes = 9
    for scene in range(scenes):
        for frame in range(2):
            image(tmp_path / f"images/{scene}/{frame}.jpg")
            labels(tmp_path / f"labels/{scene}/{frame}.png")
    calls: Counter[str] = Counter()
    for module, name in (
        (survey_module, "pairs"),
        (folder_layout, "read_labels"),
        (folder_layout, "without_split"),
    ):
        original = getattr(module, name)

        def counting(*args: Any, _original: Any = original, _name: str = name, **more: Any) -> Any:
            calls[_name] += 1
            return _original(*args, **more)

        monkeypatch.setattr(module, name, counting)
    layout = survey(tmp_path).layout
    assert isinstance(layout, FolderLayout)
    assert (layout.train.images, layout.train.partners) == ("images", "labels")
    assert calls["pairs"] == 1
    assert calls["read_labels"] <= 4 * scenes  # each once for its kind, once for its values
    assert calls["without_split"] < 3 * (scenes**2 + 1)


def test_results_are_no_labels(tmp_path: Path) -> None:
    """As of `predict` and of a run beside the data."""
    for k in range(3):
        image(tmp_path / f"set/images/{k}.jpg")
        labels(tmp_path / f"set/labels/{k}.png")
        labels(tmp_path / f"set/out/labels/{k}.png", (7, 8, 9))
        labels(tmp_path / f"set/run/labels/{k}.png", (7, 8, 9))
    (tmp_path / "set/out/.predictions.jsonl").touch()
    (tmp_path / "set/run/.maskformer-run").touch()
    data = recipe_for(tmp_path / "set").data
    assert data.train.labels == Path("labels")
    for folder in ("out", "run"):
        with pytest.raises(DatasetError, match="is a run or holds results of predict or evaluate"):
            survey(tmp_path / "set" / folder)
    for folder in ("images", "labels"):
        shutil.rmtree(tmp_path / "set" / folder)
    with pytest.raises(DatasetError, match=r"no images .skipped: .* 6 results of earlier calls"):
        survey(tmp_path / "set")


def test_where_the_recipe_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["init", str(tmp_path / "none"), "--output", str(tmp_path / "file/x.yaml")]
    with pytest.raises(NotADirectoryError, match="file is a file"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_link_that_leads_nowhere_is_no_place_for_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").symlink_to("none")
    arguments = ["init", str(tmp_path), "--output", str(tmp_path / "x.yaml")]
    with pytest.raises(UsageError, match=r"x\.yaml already exists"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    (tmp_path / "link").symlink_to("none")
    arguments[-1] = str(tmp_path / "link/folder/x.yaml")
    with pytest.raises(NotADirectoryError, match="link is a link to a missing target"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_folders_that_are_not_looked_at_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    for name in "abc":
        image(root / f"images/{name}/1.jpg")
    with pytest.raises(DatasetError, match=r"format with its images$"):
        survey(root)
    monkeypatch.setattr(pairs_module, "MAX_FOLDERS", 3)
    with pytest.raises(DatasetError, match="of 5 folders with images, only the upper 3 were"):
        survey(root)
    for name in "abc":
        labels(root / f"labels/{name}/1.png")
    recipe_for(root)
    text = (tmp_path / "recipe.yaml").read_text()
    assert "# Note: of 9 folders with images, only the upper 3 were inspected." in text
