"""Folders of images and label files: what is read, and what is said when it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer.config.schema import FolderConfig
from maskformer.data import build_dataset, check_dataset, check_splits
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.label_reader import read_labels
from maskformer.errors import DatasetError, LabelValueError

NAMES = ("road", "tree", "sky")


def write(root, name, labels, image=None, suffix=".png", **options):
    """One training pair; the image has the size of the labels."""
    labels = labels if isinstance(labels, Image.Image) else Image.fromarray(labels)
    for folder in ("images", "labels"):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    image = image or Image.new("RGB", labels.size, (10, 20, 30))
    image.save(root / "images" / f"{name}.jpg")
    labels.save(root / "labels" / f"{name}{suffix}", **options)


def config(root, **settings):
    split = {"images": "images", "labels": "labels"}
    return FolderConfig(**{"root": root, "train": split, "val": split, "classes": NAMES} | settings)


def grid(*values, dtype=np.uint8):
    """A `[4, 6]` label map whose columns cycle through the values."""
    return np.tile(np.array([values[i % len(values)] for i in range(6)], dtype), (4, 1))


def test_segments_are_the_classes_present(tmp_path):
    write(tmp_path, "town/a", grid(2, 0, 255))
    data = build_dataset(config(tmp_path), "train")
    sample = data[0]
    assert sample.name == "town/a"
    assert sample.labels.tolist() == [0, 2]
    assert sample.segments.dtype == torch.int32
    assert sample.segments[0].tolist() == [1, 0, -1, 1, 0, -1]
    assert sample.semantic_map()[0].tolist() == [2, 0, -1, 2, 0, -1]
    assert not sample.crowd.any()
    assert data.info.classes == NAMES
    assert data.num_images == len(data) == 1


def test_an_image_without_any_class(tmp_path):
    write(tmp_path, "a", grid(255))
    sample = build_dataset(config(tmp_path), "train")[0]
    assert sample.labels.shape == (0,)
    assert (sample.segments == -1).all()


def test_offset_and_ignore(tmp_path):
    write(tmp_path, "a", grid(0, 1, 3))
    data = build_dataset(config(tmp_path, label_offset=1, ignore=(0,)), "train")
    assert data[0].semantic_map()[0, :3].tolist() == [-1, 0, 2]
    assert data.info.category_ids == (1, 2, 3)


@pytest.mark.parametrize("kind", ["16-bit png", "16-bit tiff", "8-bit tiff", "palette", "1-bit"])
def test_label_formats(tmp_path, kind):
    values, names, suffix = grid(0, 1, 1), NAMES, ".tif" if "tiff" in kind else ".png"
    if kind.startswith("16"):
        values, names = grid(0, 700, 300, dtype=np.uint16), tuple(map(str, range(847)))
    labels = Image.fromarray(values)
    if kind == "palette":
        labels.putpalette([200, 0, 0, 0, 200, 0] + 254 * [7, 7, 7])
    elif kind == "1-bit":
        labels = Image.fromarray(values.astype(bool))
    write(tmp_path, "a", labels, suffix=suffix)
    data = build_dataset(config(tmp_path, classes=names, label_suffix=suffix), "train")
    assert np.array_equal(data[0].semantic_map().numpy(), values)


@pytest.mark.parametrize(
    ("mode", "pixel"), [("L", 7), ("RGBA", (9, 8, 7, 0)), ("I;16", 7 * 256), ("P", 3)]
)
def test_any_image_becomes_rgb(tmp_path, mode, pixel):
    Image.new(mode, (5, 4), pixel).save(tmp_path / "a.png")
    image = ImageReader()(tmp_path / "a.png")
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.uint8
    expected = {"L": [7, 7, 7], "RGBA": [9, 8, 7], "I;16": [7, 7, 7]}.get(mode)
    assert expected is None or image[:, 0, 0].tolist() == expected


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = ImageReader()(tmp_path / "a.png")
    assert image.shape == (3, 16, 8)
    assert image[:, :8].min() == 255
    assert image[:, 8:].max() == 0


def test_classes_from_a_file(tmp_path):
    write(tmp_path, "a", grid(0, 1))
    (tmp_path / "names.txt").write_text("road\n\n tree \n")
    data = build_dataset(config(tmp_path, classes="names.txt", things=["tree"]), "train")
    assert data.info.classes == ("road", "tree")
    assert data.info.things == frozenset({1})


def test_classes_from_the_recipes_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("maskformer.data.datasets.class_names.CONFIG_FOLDER", tmp_path / "configs")
    (tmp_path / "configs" / "x").mkdir(parents=True)
    (tmp_path / "configs" / "x" / "classes.txt").write_text("a\nb\n")
    write(tmp_path, "a", grid(0, 1))
    assert build_dataset(config(tmp_path, classes="x/classes.txt"), "val").info.num_classes == 2


def test_classes_by_number(tmp_path):
    write(tmp_path, "a", grid(1, 2))
    write(tmp_path, "b", grid(4, 255))
    data = build_dataset(config(tmp_path, classes=None, label_offset=1), "train")
    assert data.info.classes == ("class 0", "class 1", "class 2", "class 3")


def test_colors(tmp_path):
    write(tmp_path, "a", grid(0))
    colors = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert build_dataset(config(tmp_path, colors=colors), "train").info.colors == colors
    with pytest.raises(DatasetError, match="one colour per class, got 1 for 3"):
        build_dataset(config(tmp_path, colors=colors[:1]), "train")


def test_camvid(real_data):
    split = {s: {"images": s, "labels": f"{s}annot"} for s in ("train", "val")}
    names = tuple(str(k) for k in range(11))
    settings = FolderConfig(root=real_data / "camvid", classes=names, ignore=(11,), **split)
    data = build_dataset(settings, "val")
    assert len(data) == 101
    assert check_dataset(data, limit=10) == []
    with pytest.raises(
        DatasetError, match=r"the value 11 .* outside the 11 classes .*data.ignore: \[11"
    ):
        check_dataset(build_dataset(settings.model_copy(update={"ignore": ()}), "val"), limit=10)


# What is said about files that are of no use.


def refused(root, match, **settings):
    with pytest.raises(DatasetError, match=match) as caught:
        check_dataset(build_dataset(config(root, **settings), "train"))
    return str(caught.value)


def test_missing_and_empty_folders(tmp_path):
    refused(
        tmp_path, "train images: there is no folder .*images; set data.root or data.train.images"
    )
    (tmp_path / "images").mkdir()
    refused(tmp_path, "train labels: there is no folder .*labels; set data.root or")
    refused(tmp_path / "none", r"data\.train\.images \(the folder .* holds images, but no none\)$")
    (tmp_path / "labels").mkdir()
    refused(tmp_path, "images is empty; set data.train.images")
    (tmp_path / "images" / "a.jpeg").touch()
    (tmp_path / "images" / ".hidden.jpg").touch()
    refused(
        tmp_path,
        "no file that matches data.image_suffix '.jpg'; it holds 1 .jpeg",
        image_suffix=".jpg",
    )
    (tmp_path / "images" / "a.jpeg").unlink()
    (tmp_path / "images" / "a.jpg").touch()
    refused(tmp_path, "labels is empty; set data.train.labels .*for example, a.png")


def test_suffixes_match_in_any_case(tmp_path):
    write(tmp_path, "a", grid(0))
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "a.JPG")
    assert build_dataset(config(tmp_path), "train")[0].name == "a"


def test_links_to_folders_and_back(tmp_path):
    write(tmp_path, "day/a", grid(0))
    for name in ("images", "labels"):
        (tmp_path / name / "back").symlink_to(".")
        (tmp_path / name / "day" / "up").symlink_to("..")
    assert [data.name for data in build_dataset(config(tmp_path), "train")] == ["day/a"]
    # Two sights of the same place share their labels.
    write(tmp_path, "fog/a", grid(0))
    (tmp_path / "labels" / "fog" / "a.png").unlink()
    (tmp_path / "labels" / "fog").rmdir()
    (tmp_path / "labels" / "fog").symlink_to("day")
    assert [data.name for data in build_dataset(config(tmp_path), "train")] == ["day/a", "fog/a"]


def test_missing_label_file(tmp_path):
    write(tmp_path, "a", grid(0))
    write(tmp_path, "b", grid(0))
    (tmp_path / "labels" / "b.png").unlink()
    refused(tmp_path, r"1 of 2 images have no label file; first: .*b\.jpg, expected .*b\.png")


def test_broken_image(tmp_path):
    write(tmp_path, "a", grid(0))
    write(tmp_path, "b", grid(0), Image.effect_noise((6, 4), 90).convert("RGB"))
    file = tmp_path / "images" / "b.jpg"
    file.write_bytes(file.read_bytes()[:-30])
    refused(tmp_path, r"image file .*b\.jpg cannot be read .*broken or not an image")
    file.write_bytes(b"no image")
    refused(tmp_path, r"image file .*b\.jpg cannot be read")


def test_broken_label(tmp_path):
    write(tmp_path, "a", grid(0))
    file = tmp_path / "labels" / "a.png"
    file.write_bytes(file.read_bytes()[:40])
    refused(tmp_path, r"label file .*a\.png cannot be read")


def test_a_file_that_vanished(tmp_path):
    write(tmp_path, "a", grid(0))
    data = build_dataset(config(tmp_path), "train")
    (tmp_path / "labels" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"label file .*a\.png does not exist"):
        data[0]


@pytest.mark.parametrize(
    ("size", "cause"), [((4, 6), "rotated by 90 degrees"), ((6, 5), "belongs to another image")]
)
def test_size_mismatch(tmp_path, size, cause):
    write(tmp_path, "a", grid(0), Image.new("RGB", size))
    message = refused(tmp_path, cause)
    assert (
        f"a.png is 6x4 pixels, its image {tmp_path}/images/a.jpg is {size[0]}x{size[1]}" in message
    )


def test_coloured_labels(tmp_path):
    write(tmp_path, "a", Image.new("RGB", (6, 4)))
    refused(tmp_path, r"a\.png has RGB pixels, expected one integer per pixel")


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        (
            (0, 3),
            {},
            r"3 \(12 pixels\), outside the 3 classes .*: \[3, 255\]; or 0 means .* lacks the last",
        ),
        ((1, 2, 3), {}, "classes count from 1: set data.label_offset: 1"),
        ((0, 255), {"ignore": ()}, r"stands for void: add it to data.ignore: \[255\]"),
        (
            (0, 1),
            {"label_offset": 1},
            r"values below data.label_offset 1 stand for void: .*\[0, 255\]",
        ),
        ((0, 9), {}, "data.classes lists 3 names and the labels need 10"),
        ((0, 9, 254), {}, r"the labels need 10, .*data.ignore: \[9, 254, 255\]"),
    ],
)
def test_values_outside_the_classes(tmp_path, values, settings, said):
    write(tmp_path, "a", grid(*values))
    data = build_dataset(config(tmp_path, **settings), "train")
    for look in (lambda: data[0], lambda: check_dataset(data)):
        with pytest.raises(DatasetError, match=said) as caught:
            look()
        assert str(tmp_path / "labels" / "a.png") in str(caught.value)


def test_values_beyond_16_bit(tmp_path):
    labels = Image.fromarray(grid(0, 70_000, dtype=np.int32))
    write(tmp_path, "a", labels, suffix=".tif")
    refused(tmp_path, "expected an 8-bit or 16-bit label image", label_suffix=".tif")
    refused(
        tmp_path, "values up to 70000, expected class numbers", label_suffix=".tif", classes=None
    )


def test_several_files_make_one_message(tmp_path):
    for name, value in (("a", 0), ("b", 7), ("c", 7), ("d", 8)):
        write(tmp_path, name, grid(value))
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    message = refused(tmp_path, "4 of the 4 images that were checked cannot be used")
    assert "3 label files have the values 7 (48 pixels), 8 (24 pixels)" in message
    assert "need 9" in message
    assert "a.jpg" in message


def test_label_errors_survive_pickling(tmp_path):
    import pickle

    write(tmp_path, "a", grid(0, 9))
    with pytest.raises(LabelValueError) as caught:
        build_dataset(config(tmp_path), "train")[0]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.file, copy.values, copy.found) == (
        str(caught.value),
        str(tmp_path / "labels" / "a.png"),
        {9: 12},
        (0, 9),
    )


def test_classes_that_cannot_be_found(tmp_path):
    write(tmp_path, "a", grid(255))
    refused(
        tmp_path, r"data.classes: there is no file .*names.txt or .*names.txt", classes="names.txt"
    )
    refused(tmp_path, "there is no file", classes=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\n")
    refused(tmp_path, "names.txt is empty, expected one class name per line", classes="names.txt")
    refused(tmp_path, "data.classes is an empty list", classes=())
    refused(tmp_path, "data.things has names that are not in data.classes: car", things=["car"])
    refused(tmp_path, "no class found in 1 label files", classes=None)


def test_the_doctor_warns(tmp_path):
    write(tmp_path, "a", grid(0, 255, 255))
    data = build_dataset(config(tmp_path), "train")
    void, alone = check_dataset(data)
    assert "67% of the pixels are void" in void
    assert "at most one class occurs" in alone
    write(tmp_path, "b", grid(0, 1))
    data = build_dataset(config(tmp_path), "train")
    assert check_dataset(data) == ["1 of 3 classes never occur: sky"]
    assert check_dataset(data, limit=1) != check_dataset(data)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        check_dataset(data, limit=0)


def test_classes_that_only_one_split_shows(tmp_path):
    for split, values in (("train", (0, 1)), ("val", (0, 2))):
        (tmp_path / split).mkdir()
        write(tmp_path / split, f"of {split}", grid(*values))
    splits = {s: {"images": f"{s}/images", "labels": f"{s}/labels"} for s in ("train", "val")}
    settings = config(tmp_path, **splits)
    train, val = (build_dataset(settings, split) for split in ("train", "val"))
    assert check_splits(train, val) == [
        "train data: 1 of 3 classes never occur: sky",
        "val data: 1 of 3 classes never occur: tree",
        "train data: it has classes that val lacks: tree",
        "val data: it has classes that train lacks: sky",
    ]
    write(tmp_path / "val", "b", grid(1))
    val = build_dataset(settings, "val")
    assert not [text for text in check_splits(train, val, limit=1) if "train data: it" in text]
    write(tmp_path / "val", "b", grid(9))
    with pytest.raises(DatasetError, match="value 9"):
        check_splits(train, build_dataset(settings, "val"))


def test_labels_keep_their_raw_values(tmp_path):
    Image.fromarray(grid(0, 65_535, dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png").max() == 65_535
