"""What is wrong with a file is told in one line, whatever the file is called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from helpers.label_folders import columns, data_config, folder_config, write_pair
from PIL import Image

from maskformer.data import build_dataset, check_dataset
from maskformer.data.layout.survey import survey
from maskformer.errors import DatasetError
from maskformer.predict.finding import find_images

NAME = "a\nerror: b"
"""Of which a log would show two lines, the second one a lie."""
CAT = "cat\nerror: dog"


def grey_of(size: tuple[int, int]) -> Image.Image:
    return Image.new("L", size)


LABELS: dict[str, tuple[Callable[[], Image.Image], str, dict[str, object]]] = {
    "another size": (lambda: grey_of((5, 5)), "PNG", {}),
    "a value of no class": (lambda: Image.new("L", (2, 2), 7), "PNG", {}),
    "lossy": (lambda: grey_of((2, 2)), "JPEG", {}),
    "bits of which 0 is white": (lambda: Image.new("1", (2, 2)), "PPM", {}),
    "colours": (lambda: Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", {}),
    "fractions": (lambda: Image.new("F", (2, 2)), "TIFF", {"label_map": {"#000000": "cat"}}),
    "opacity": (lambda: Image.new("RGBA", (2, 2)), "PNG", {"label_map": {"#000000": "cat"}}),
    "no image": (lambda: Image.new("RGBA", (2, 2)), "PDF", {}),
}


@pytest.mark.parametrize("fault", LABELS)
def test_label_files(tmp_path: Path, fault: str) -> None:
    make, form, settings = LABELS[fault]
    write_pair(tmp_path, NAME, columns(0, 1))
    make().save(tmp_path / "labels" / f"{NAME}.png", format=form)
    classes = {} if "label_map" in settings else {"classes": ["cat", "dog"]}
    data = build_dataset(folder_config(tmp_path, **classes, **settings), "train")
    with pytest.raises(DatasetError, match=r"labels/a\\x0aerror: b\.png") as caught:
        check_dataset(data)
    assert "\n" not in str(caught.value)


def test_objects_and_classes(tmp_path: Path) -> None:
    split = {"images": "images", "labels": "labels", "objects": "objects"}
    write_pair(tmp_path, NAME, columns(0, 1))
    write_pair(tmp_path, NAME, columns(0, 0), folder="objects")
    classes = ["background", CAT]
    data = build_dataset(folder_config(tmp_path, train=split, val=split, classes=classes), "train")
    with pytest.raises(DatasetError, match=r"objects/a\\x0aerror.*cat\\x0aerror: dog") as caught:
        data[0]
    assert "\n" not in str(caught.value)


def test_classes_that_never_occur(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", columns(0, 1))
    data = build_dataset(folder_config(tmp_path, classes=["a", "b", CAT]), "train")
    assert check_dataset(data) == [r"1 of 3 classes never occur: cat\x0aerror: dog"]


@pytest.mark.parametrize(
    ("pixels", "ids"), [((2, 0, 0), [1]), ((1, 0, 0), [1, 1]), ((0, 0, 0), [1, 2, 3])]
)
def test_panoptic_files(tmp_path: Path, pixels: tuple[int, int, int], ids: list[int]) -> None:
    write_pair(tmp_path, NAME, np.full((2, 2, 3), pixels, np.uint8))
    segments = [{"id": number, "category_id": 1} for number in ids]
    content = {
        "images": [{"id": 1, "file_name": f"{NAME}.jpg"}],
        "annotations": [{"image_id": 1, "file_name": f"{NAME}.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    split = {"images": "images", "panoptic": "labels", "annotations": "a.json"}
    data = build_dataset(data_config("coco_panoptic", tmp_path, split), "train")
    with pytest.raises(DatasetError, match=r"labels/a\\x0aerror: b\.png") as caught:
        data[0]
    assert "\n" not in str(caught.value)


def instances(image: Mapping[str, object], *names: str) -> str:
    """A JSON file of one image with one object, and categories of these names."""
    content = {
        "images": [{"id": 1, **image}],
        "annotations": [{"segmentation": [[0, 0, 2, 0, 2, 2]], "image_id": 1, "category_id": 1}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    return json.dumps(content)


def test_instances_of_an_image_of_another_size(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write_pair(tmp_path, NAME, columns(0, 1))
    image = {"file_name": f"{NAME}.jpg", "width": 9, "height": 7}
    (tmp_path / "a.json").write_text(instances(image, "cat"))
    split = {"images": "images", "annotations": "a.json"}
    data = build_dataset(data_config("coco_instances", tmp_path, split), "train")
    with pytest.raises(DatasetError, match=r"images/a\\x0aerror: b\.jpg") as caught:
        data[0]
    assert "\n" not in str(caught.value)


def test_categories_that_the_map_leaves_out(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write_pair(tmp_path, "a", columns(0, 1))
    (tmp_path / "a.json").write_text(instances({"file_name": "a.jpg"}, CAT, "dog"))
    split = {"images": "images", "annotations": "a.json"}
    config = data_config("coco_instances", tmp_path, split, label_map={"dog": "dog"})
    with pytest.raises(
        DatasetError, match=r"does not map 1 of the 2 categories: cat\\x0aerror: dog; add"
    ):
        build_dataset(config, "train")


def test_values_that_look_multiplied_or_like_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", columns(0, 255))
    config = folder_config(tmp_path, classes=["sky", CAT], ignore=[254])
    with pytest.raises(DatasetError, match=r"\{0: sky, 255: cat\\x0aerror: dog\}") as caught:
        check_dataset(build_dataset(config, "train"))
    assert "\n" not in str(caught.value)
    write_pair(tmp_path, "a", columns(0, 100, 200))
    config = folder_config(tmp_path, classes=["sky", CAT, "sea"])
    with pytest.raises(DatasetError, match=r"\{0: sky, 100: cat\\x0aerror: dog, 200") as caught:
        check_dataset(build_dataset(config, "train"))
    assert "\n" not in str(caught.value)


def test_what_init_and_predict_find(tmp_path: Path) -> None:
    for name in ("one", NAME):
        for k in range(3):
            write_pair(tmp_path / "sets" / name, f"{k}", columns(0, 1))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / f"{NAME}.tar").touch()
    write_pair(tmp_path / "coco", "a", columns(0, 1))
    shutil.rmtree(tmp_path / "coco" / "labels")
    for name in ("a", NAME):
        (tmp_path / "coco" / f"{name}.json").write_text(instances({"file_name": "a.jpg"}, "cat"))
    for folder, said in (
        ("sets", r"several data sets: .*a\\x0aerror: b"),
        ("shards", r"tar files \(a\\x0aerror: b\.tar\)"),
        ("coco", r"several JSON files of one kind \(.*a\\x0aerror: b\.json"),
    ):
        with pytest.raises(DatasetError, match=said) as caught:
            survey(tmp_path / folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / f"x.{NAME}").touch()
    with pytest.raises(DatasetError, match=r"the folder holds 1 \.a\\x0aerror: b, and images"):
        find_images([str(tmp_path / "text")])
