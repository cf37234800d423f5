"""COCO panoptic files: ids, crowds, and JSON that does not fit its PNGs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskformer.config.schema import CocoPanopticConfig
from maskformer.data import build_dataset, check_dataset
from maskformer.data.label_reader import id_to_rgb, rgb_to_id
from maskformer.data.sample import segment_areas
from maskformer.errors import DatasetError

CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 7, "name": "train", "isthing": 1},
    {"id": 200, "name": "rug", "isthing": 0, "color": [250, 141, 255]},
]
IDS = np.array([[0, 5, 5, 70_000], [300, 300, 5, 70_000]], np.int32)


def segment(number, category, **more):
    return {
        "id": number,
        "category_id": category,
        "iscrowd": 0,
        "area": 1,
        "bbox": [0, 0, 1, 1],
    } | more


SEGMENTS = [segment(70_000, 200), segment(5, 7), segment(300, 7, iscrowd=1)]


def write(root, ids=IDS, segments=SEGMENTS, size=None, **content):
    (root / "images").mkdir(exist_ok=True)
    (root / "panoptic").mkdir(exist_ok=True)
    Image.new("RGB", size or ids.shape[::-1]).save(root / "images" / "x1.jpg")
    Image.fromarray(id_to_rgb(ids)).save(root / "panoptic" / "1.png")
    annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    images = [{"id": 1, "file_name": "x1.jpg"}]
    whole = {"images": images, "annotations": annotations, "categories": CATEGORIES} | content
    (root / "panoptic.json").write_text(json.dumps(whole))


def config(root, **settings):
    split = {"images": "images", "panoptic": "panoptic", "annotations": "panoptic.json"}
    return CocoPanopticConfig(**{"root": root, "train": split, "val": split} | settings)


def refused(root, match, **settings):
    with pytest.raises(DatasetError, match=match):
        check_dataset(build_dataset(config(root, **settings), "val"))


@given(st.integers(0, 2**24 - 1))
def test_ids_are_colours(number):
    rgb = id_to_rgb(np.array([[number]]))
    assert number == int(rgb[0, 0, 0]) + 256 * int(rgb[0, 0, 1]) + 65536 * int(rgb[0, 0, 2])
    assert rgb_to_id(rgb).item() == number


def with_labels(root, labels, **settings):
    """A data set whose validation has label PNGs, too."""
    write(root)
    (root / "labels").mkdir(exist_ok=True)
    Image.fromarray(np.array(labels, np.uint8)).save(root / "labels" / "1.png")
    split = {"images": "images", "panoptic": "panoptic", "annotations": "panoptic.json"}
    return config(root, val={**split, "semantic_labels": "labels"}, **settings)


def test_label_files_tell_the_classes_of_validation(tmp_path):
    """Here the panoptic PNG leaves void what the label PNG calls a person."""
    given = with_labels(tmp_path, [[0, 1, 1, 2], [255, 1, 1, 2]])
    data = build_dataset(given, "val")
    [sample] = data
    assert sample.semantic_map().tolist() == [[0, 1, 1, 2], [-1, 1, 1, 2]]
    assert sample.segments.tolist() == [[-1, 1, 1, 0], [2, 2, 1, 0]]
    assert not data.notes
    [trained] = build_dataset(given, "train")
    assert trained.semantic_map().tolist() == [[-1, 1, 1, 2], [1, 1, 1, 2]]


def test_without_label_files_the_segments_serve(tmp_path):
    given = with_labels(tmp_path, [[0] * 4] * 2, label_map={"*": "thing"})
    [note] = build_dataset(given, "val").notes
    assert "panoptic PNGs, not on data.val.semantic_labels: data.label_map" in note
    given = with_labels(tmp_path, [[0] * 4] * 2)
    (tmp_path / "labels" / "1.png").rename(tmp_path / "elsewhere.png")
    with pytest.raises(DatasetError, match=r"data\.val\.semantic_labels"):
        build_dataset(given, "val")
    (tmp_path / "labels").rmdir()
    data = build_dataset(given, "val")
    assert data[0].semantic_map().tolist() == [[-1, 1, 1, 2], [1, 1, 1, 2]]
    assert "labels does not exist" in data.notes[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([[3] * 4] * 2, "has the value 3, expected 0 to 2, or 255"), ([[0] * 3] * 2, "3x2")],
)
def test_label_files_that_do_not_fit(tmp_path, labels, message):
    data = build_dataset(with_labels(tmp_path, labels), "val")
    with pytest.raises(DatasetError, match=message):
        data[0]


def test_sample(tmp_path):
    write(tmp_path)
    data = build_dataset(config(tmp_path), "train")
    sample = data[0]
    assert sample.name == "x1"
    assert sample.labels.tolist() == [2, 1, 1]
    assert sample.crowd.tolist() == [False, False, True]
    assert sample.segments.tolist() == [[-1, 1, 1, 0], [2, 2, 1, 0]]
    assert sample.segments.dtype == torch.int32
    assert data.info.classes == ("person", "train", "rug")
    assert data.info.things == frozenset({0, 1})
    assert data.info.category_ids == (1, 7, 200)
    assert data.info.colors[0] == (220, 20, 60)
    assert len(set(data.info.colors)) == 3
    assert data.num_images == 1


def test_image_without_segments(tmp_path):
    write(tmp_path, np.zeros((2, 3), np.int32), [])
    sample = build_dataset(config(tmp_path), "val")[0]
    assert sample.labels.shape == (0,)
    assert (sample.segments == -1).all()


def test_image_name_from_the_png(tmp_path):
    write(tmp_path, images=[])
    (tmp_path / "images" / "x1.jpg").rename(tmp_path / "images" / "1.jpg")
    assert build_dataset(config(tmp_path), "val")[0].name == "1"


def test_categories_from_a_file(tmp_path):
    write(tmp_path, categories=[])
    refused(tmp_path, "has no categories; set data.categories")
    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES))
    data = build_dataset(config(tmp_path, categories="categories.json"), "val")
    assert data.info.num_classes == 3


def test_the_sample_of_coco(real_data):
    data = build_dataset(config(real_data / "coco_panoptic_sample"), "val")
    assert (data.info.num_classes, len(data.info.things), len(data)) == (133, 80, 2)
    check_dataset(data)
    content = json.loads((real_data / "coco_panoptic_sample" / "panoptic.json").read_text())
    for i, annotation in enumerate(content["annotations"]):
        sample = data[i]
        areas = sample.segments.flatten().add(1).bincount()[1:].tolist()
        assert areas == [item["area"] for item in annotation["segments_info"]]
        wanted = [item["category_id"] for item in annotation["segments_info"]]
        assert [data.info.category_ids[k] for k in sample.labels] == wanted


def test_other_classes_for_the_sample_of_coco(real_data):
    mapped = {"person": "person", "*": None}
    root = real_data / "coco_panoptic_sample"
    data, whole = (
        build_dataset(config(root, **settings), "val") for settings in ({"label_map": mapped}, {})
    )
    assert data.info.classes == ("person",)
    for one, other in zip(data, whole, strict=True):
        person = other.labels == whole.info.classes.index("person")
        assert one.labels.tolist() == [0] * int(person.sum())
        areas = segment_areas(other.segments, len(person))[person]
        assert torch.equal(segment_areas(one.segments, len(one.labels)), areas)


def test_png_and_json_disagree(tmp_path):
    write(tmp_path, segments=SEGMENTS[:2])
    refused(tmp_path, r"1\.png has segment ids that its JSON entry does not list: 300 \(2 pixels\)")
    more = [segment(number, 1) for number in (9, 10, 11, 12)]
    write(tmp_path, segments=[*SEGMENTS, *more])
    refused(tmp_path, r"1\.png lists segments without pixels: ids \[9, 10, 11, 12\]; PNG and JSON")
    write(tmp_path, segments=[*SEGMENTS, segment(5, 1)])
    refused(tmp_path, r"1\.png lists a segment id twice")
    write(tmp_path, segments=[segment(70_000, 3), *SEGMENTS[1:]])
    refused(tmp_path, r"segments with the category ids \[3\], which are not in its categories")


@pytest.mark.parametrize("number", [0, 9])
def test_a_stray_entry_is_left_out_and_counted(tmp_path, number):
    write(tmp_path, segments=[segment(number, 1, area=0), *SEGMENTS])
    data = build_dataset(config(tmp_path), "val")
    sample = data[0]
    assert sample.empty_segments == 1
    assert sample.labels.tolist() == [2, 1, 1]
    assert sample.crowd.tolist() == [False, False, True]
    assert sample.segments.tolist() == [[-1, 1, 1, 0], [2, 2, 1, 0]]
    warnings = check_dataset(data)
    assert warnings[0] == "listed segments without pixels were ignored: 1"
    write(tmp_path)
    assert not any(
        "were ignored" in text for text in check_dataset(build_dataset(data.config, "val"))
    )


def test_channels_in_the_wrong_order(tmp_path):
    write(tmp_path)
    Image.fromarray(id_to_rgb(IDS)[..., ::-1]).save(tmp_path / "panoptic" / "1.png")
    refused(tmp_path, "the order blue, green, red, as OpenCV writes them; swap them")


@pytest.mark.parametrize(("form", "name"), [("JPEG", "JPEG"), ("WEBP", "WebP"), ("TIFF", "JPEG")])
def test_colours_compressed_with_loss(tmp_path, form, name):
    write(tmp_path)
    options = {"compression": "jpeg"} if form == "TIFF" else {}
    Image.fromarray(id_to_rgb(IDS)).save(tmp_path / "panoptic" / "1.png", form, **options)
    refused(tmp_path, rf"panoptic file .*1\.png is compressed as {name}, which changes values")


def test_a_json_of_instances(tmp_path):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1]]}
    write(tmp_path, annotations=[annotation])
    refused(tmp_path, r"panoptic\.json is a COCO instances JSON .* data.format: coco_instances")


def test_sizes_disagree(tmp_path):
    write(tmp_path, size=(8, 4))
    refused(tmp_path, "is 4x2 pixels, its image .* is 8x4")


def test_not_a_panoptic_png(tmp_path):
    write(tmp_path)
    Image.new("L", (4, 2)).save(tmp_path / "panoptic" / "1.png")
    refused(tmp_path, r"1\.png has L pixels, expected RGB with id = R")


def test_missing_files(tmp_path):
    refused(tmp_path, "there is no file .*panoptic.json; set data.root or data.val.annotations")
    write(tmp_path)
    (tmp_path / "images" / "x1.jpg").unlink()
    refused(
        tmp_path,
        "1 of 1 files that the JSON names are missing from .*images, first x1.jpg; set data.val",
    )
    (tmp_path / "images").rmdir()
    refused(tmp_path, "there is no folder .*images; set data.root or data.val.images")


def test_unusable_json(tmp_path):
    write(tmp_path)
    file = tmp_path / "panoptic.json"
    for content, said in (
        ("{", "cannot be read as JSON"),
        ("[]", "has no annotations; expected a COCO panoptic JSON"),
        ('{"annotations": []}', "has no annotations"),
    ):
        file.write_text(content)
        refused(tmp_path, said)
    write(tmp_path, annotations=[{"image_id": 1}])
    refused(
        tmp_path, r"does not follow the COCO panoptic format: annotations\[0\]\.file_name: Field"
    )
    write(tmp_path, categories=[{"id": 1, "name": "a"}])
    refused(tmp_path, r"COCO panoptic format: categories\[0\]\.isthing: Field required, got \{'id'")
    write(tmp_path, categories=[*CATEGORIES, CATEGORIES[0]])
    refused(tmp_path, "list a category id twice")


# Other classes than the categories.


def test_label_map(tmp_path):
    write(tmp_path)
    vehicles = {"train": "vehicle", 1: "vehicle", "rug": None}
    data = build_dataset(config(tmp_path, label_map=vehicles), "val")
    assert data.info.classes == ("vehicle",)
    assert (data.info.things, data.info.category_ids) == (frozenset({0}), (1,))
    assert data.info.colors == ((220, 20, 60),)
    sample = data[0]
    assert sample.labels.tolist() == [0, 0]
    assert sample.crowd.tolist() == [False, True]
    assert sample.segments.tolist() == [[-1, 0, 0, -1], [1, 1, 0, -1]]
    assert sample.empty_segments == 0
    check_dataset(data)
    picked = build_dataset(config(tmp_path, label_map={"rug": "floor", "*": None}), "val")
    void, alone = check_dataset(picked)
    assert void.endswith("of the pixels are void; check data.label_map")  # labels are no files
    assert "'floor' is the only class" in alone


def test_images_that_the_json_does_not_name_are_counted(tmp_path):
    write(tmp_path)
    assert build_dataset(config(tmp_path), "val").notes == ()
    (tmp_path / "images" / "x2.jpg").write_bytes(b"")
    (note,) = build_dataset(config(tmp_path), "val").notes
    assert note.endswith("images: 1 that the JSON does not list (x2.jpg)")


def test_categories_that_become_one_class_of_stuff(tmp_path):
    segments = [segment(70_000, 200), segment(5, 7), segment(300, 1)]
    write(tmp_path, segments=segments)
    data = build_dataset(config(tmp_path, label_map={"rug": "floor", "*": "floor"}), "val")
    assert data.info.things == frozenset()
    assert data[0].labels.tolist() == [0]
    assert data[0].segments.tolist() == [[-1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("label_map", "said"),
    [
        ({"cat": "a", "*": None}, "has the keys cat, which are not names or ids of categories"),
        ({"person": "a"}, r"does not map 2 of the 3 categories: train, rug; add .*'\*'"),
        ({"*": None}, "maps everything to void"),
        ({"person": 1, "*": None}, "maps no category to class 0"),
        ({"person": 0, "rug": "a", "*": None}, "mixes names and numbers"),
    ],
)
def test_a_label_map_that_does_not_fit(tmp_path, label_map, said):
    write(tmp_path)
    refused(tmp_path, said, label_map=label_map)


def test_val_as_a_share_of_train(tmp_path):
    write(tmp_path)
    entries = [
        {"image_id": k, "file_name": f"{k}.png", "segments_info": SEGMENTS} for k in range(9)
    ]
    for k in range(9):
        Image.new("RGB", (4, 2)).save(tmp_path / "images" / f"{k}.jpg")
        Image.fromarray(id_to_rgb(IDS)).save(tmp_path / "panoptic" / f"{k}.png")
    write(tmp_path, images=[], annotations=entries)
    settings = config(tmp_path, val=1 / 3)
    train, val = (build_dataset(settings, split) for split in ("train", "val"))
    names = [sorted(sample.name for sample in data) for data in (train, val)]
    assert [len(each) for each in names] == [6, 3]
    assert sorted(names[0] + names[1]) == [str(k) for k in range(9)]
    write(tmp_path, images=[], annotations=entries[::-1])
    assert sorted(sample.name for sample in build_dataset(settings, "val")) == names[1]
    assert check_dataset(val) == check_dataset(train)
