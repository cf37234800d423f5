"""Classes other than the raw values of label files: `data.label_map`, names, and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.label_folders import columns, folder_config, write_pair

from maskformer.config.load import load_config, parse_config, to_yaml
from maskformer.data import build_dataset, check_dataset
from maskformer.errors import ConfigError, DatasetError
from maskformer.output.result_writer import label_numbers


def classes_of(root: Path, *values: int, **settings: Any) -> list[int]:
    """The classes of pixels with these raw values; -1 is void."""
    write_pair(root, "a", columns(*values, dtype=np.uint16))
    data = build_dataset(folder_config(root, **settings), "train")
    return data[0].semantic_map()[0].tolist()


def refused(root: Path, said: str, *values: int, **settings: Any) -> None:
    write_pair(root, "a", columns(*values, dtype=np.uint16))
    with pytest.raises(DatasetError, match=said):
        check_dataset(build_dataset(folder_config(root, **settings), "train"))


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    settings = {"label_map": {0: "background", 255: "crack"}}
    assert classes_of(tmp_path, 0, 255, 0, **settings) == [0, 1, 0]
    data = build_dataset(folder_config(tmp_path, **settings), "train")
    assert data.info.classes == ("background", "crack")
    assert data.info.category_ids == (0, 255)
    assert check_dataset(data) == []


def test_merge_drop_and_pick(tmp_path: Path) -> None:
    settings = {
        "classes": ["vehicle", "person"],
        "label_map": {26: "vehicle", 27: "vehicle", 24: "person", 7: None, 8: "ignore", 11: 1},
    }
    seen = classes_of(tmp_path, 26, 27, 24, 7, 8, 11, 255, **settings)
    assert seen == [0, 0, 1, -1, -1, 1, -1]
    refused(
        tmp_path, r"the value 9 \(2 pixels\), which data.label_map does not list", 9, **settings
    )
    settings["label_map"]["*"] = None
    assert classes_of(tmp_path, 26, 9, 300, **settings) == [0, -1, -1]
    settings["label_map"]["*"] = "person"
    assert classes_of(tmp_path, 26, 9, 255, **settings) == [0, 1, -1]


def test_names_as_keys(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sky\nroad\ncar\nbus\n")
    settings = {
        "label_names": "names.txt",
        "label_offset": 1,
        "label_map": {"car": "vehicle", "bus": "vehicle", "sky": "other", "*": None},
    }
    assert classes_of(tmp_path, 1, 2, 3, 4, 0, **settings) == [1, -1, 0, 0, -1]
    settings["label_map"] = {"tram": "vehicle"}
    refused(
        tmp_path, "the key tram, expected a raw value, a colour .* data.label_names", 0, **settings
    )
    settings["label_map"] = {"car": "vehicle", 3: "vehicle"}
    refused(tmp_path, "has the keys car and 3, which are one raw value", 0, **settings)


def test_colours_as_keys(tmp_path: Path) -> None:
    red, green, white = (255, 0, 0), (0, 128, 0), (255, 255, 255)
    write_pair(tmp_path, "a", columns(red, green, white))
    settings = {"label_map": {"#ff0000": "cat", "#008000": "dog", "#FFFFFF": None}}
    data = build_dataset(folder_config(tmp_path, **settings), "train")
    assert data.info.classes == ("cat", "dog")
    assert data[0].semantic_map()[0].tolist() == [0, 1, -1]
    assert label_numbers(data.info).tolist() == [0, 1]
    write_pair(tmp_path, "a", columns(red, (0, 0, 255)))
    with pytest.raises(DatasetError, match=r"#0000ff \(2 pixels\), which data.label_map does not"):
        check_dataset(data)
    settings["label_map"][3] = "cow"
    with pytest.raises(DatasetError, match="has colours and other keys"):
        build_dataset(folder_config(tmp_path, **settings), "train")
    settings["label_map"] = {"#ff0000": "cat", "#FF0000": "dog"}
    with pytest.raises(DatasetError, match="has the keys #ff0000 and #FF0000, which are one raw"):
        build_dataset(folder_config(tmp_path, **settings), "train")


def test_numbers_of_classes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"label_map": {7: 0, 8: 1, 11: 2, "*": None}}
    assert classes_of(tmp_path, 8, 7, 9, 11, **settings) == [1, 0, -1, 2]
    data = build_dataset(folder_config(tmp_path, **settings), "train")
    assert data.info.classes == ("class 0", "class 1", "class 2")
    refused(tmp_path, "maps no value to class 1 of", 7, label_map={7: 0, 11: 2})
    refused(tmp_path, "mixes names and numbers", 7, label_map={7: 0, 11: "sky"})


def test_label_files_that_are_written_are_read_back(tmp_path: Path) -> None:
    settings = {"label_map": {5: "a", 6: "a", 9: "b", "*": "c"}}
    write_pair(tmp_path, "a", columns(6, 9, 77))
    data = build_dataset(folder_config(tmp_path, **settings), "train")
    numbers = label_numbers(data.info)
    assert classes_of(tmp_path, *numbers.tolist(), **settings) == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_map": {0: "a", 1: "c"}, "classes": ["a", "b"]}, "names the class c, which is not"),
        ({"label_map": {0: 2}, "classes": ["a", "b"]}, "names the class 2, which is not in the"),
        ({"label_map": {0: "a"}, "classes": ["a", "b"]}, "maps no value to b of data.classes"),
        ({"label_map": {0: None}}, "maps everything to void"),
        ({"label_map": {"sky": "a"}}, "the key sky, expected a raw value"),
        ({"label_map": {0: "a"}, "label_names": "x.txt"}, "data.label_names: there is no file"),
    ],
)
def test_maps_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    refused(tmp_path, said, 0, **settings)


@pytest.mark.parametrize(
    ("label_map", "said"),
    [
        ({}, "data.label_map: Dictionary should have at least 1 item"),
        ({False: "a"}, "data.label_map.0: a name must be text, got False; YAML reads no, off"),
        ({0: True}, "data.label_map.0: a name must be text, got True"),
        ({0: 1.5}, "data.label_map.0: a name must be text, got 1.5"),
        ({0: ["a"]}, "data.label_map.0: a class is a name, a number or null, got"),
        ({0: "x" * 1001}, "data.label_map.0: a name has at most 1000 characters"),
        ({0: "a", "0": "b"}, "data.label_map: the keys 0 and '0' are one raw label"),
        ({"7": None, 2: "a", "007": "b"}, "data.label_map: the keys '7' and '007' are one raw"),
    ],
)
def test_maps_of_other_types(tmp_path: Path, label_map: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        folder_config(tmp_path, label_map=label_map)


def test_a_recipe_with_a_map_is_written_and_read(tmp_path: Path) -> None:
    data = folder_config(tmp_path, label_map={0: "a", "255": None, "*": "b"}, val=0.1)
    assert data.label_map == {0: "a", 255: None, "*": "b"}
    (tmp_path / "recipe.yaml").write_text(to_yaml(parse_config({"data": data})))
    assert load_config(tmp_path / "recipe.yaml").data == data


def test_a_map_of_its_own_is_another_list_of_classes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "base: camvid\ndata: {classes: null, label_map: {0: sky, 3: road, '*': null}}\n"
    )
    config = load_config(tmp_path / "recipe.yaml", ["data.label_map={1: a}"])
    assert config.data.label_map == {1: "a"}
    assert config.data.colors is None
    assert config.model.num_classes is None
    (tmp_path / "recipe.yaml").write_text(
        "base: camvid\ndata: {format: coco_instances, root: x, train: {images: ., annotations: x}, "
        "val: 0.1}\n"
    )
    assert load_config(tmp_path / "recipe.yaml").model.num_classes is None


# Masks and stretched numbers without a map.


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, "0: background, 255: object"),
        ({"ignore": []}, "0: background, 255: object"),
        ({"classes": ["nothing", "crack"]}, "0: nothing, 255: crack"),
        ({"classes": ["nothing", "crack"], "ignore": []}, "0: nothing, 255: crack"),
    ],
)
def test_masks_are_recognised(tmp_path: Path, settings: dict[str, Any], names: str) -> None:
    refused(tmp_path, rf"data.label_map: {{{names}}}", 0, 255, 0, **settings)


@pytest.mark.parametrize("white", [100, 128, 254, 65_535])
def test_masks_of_another_white(tmp_path: Path, white: int) -> None:
    refused(tmp_path, rf"{{0: background, {white}: object}}", 0, white)
    refused(tmp_path, rf"{{0: a, {white}: b}}", 0, white, classes=["a", "b"])
    assert classes_of(tmp_path, 0, white, label_map={0: "a", white: "b"}) == [0, 1]


def test_void_around_two_classes_is_no_mask(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", columns(0, 255))
    write_pair(tmp_path, "b", columns(0, 1))
    settings = folder_config(tmp_path, classes=["background", "crack"])
    assert check_dataset(build_dataset(settings, "train")) == []
    write_pair(tmp_path, "b", columns(0, 255))
    settings = folder_config(tmp_path, classes=["background", "crack"])
    assert "hold only 0 and 255" in check_dataset(build_dataset(settings, "val"))[0]
    said = {0: "background", 1: "crack", 255: None}
    settings = folder_config(tmp_path, classes=["background", "crack"], label_map=said)
    assert "at most one class occurs" in check_dataset(build_dataset(settings, "train"))[0]


@pytest.mark.parametrize("factor", [17, 85, 100])
def test_stretched_numbers(tmp_path: Path, factor: int) -> None:
    values = (0, factor, 2 * factor)
    write_pair(tmp_path, "a", columns(*values))
    first = check_dataset(build_dataset(folder_config(tmp_path), "train"))[0]
    assert f"multiples of {factor}" in first
    said = f"multiplied by {factor} .* {{0: a, {factor}: b, {2 * factor}: c}}"
    refused(tmp_path, said, *values, classes=["a", "b", "c"])


def test_too_many_values(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.arange(200, dtype=np.uint8).reshape(2, 100))
    first = check_dataset(build_dataset(folder_config(tmp_path), "train"))[0]
    assert "the labels hold 200 different values" in first


def test_a_single_class(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", columns(0, 0))
    data = build_dataset(folder_config(tmp_path, classes=["sky"]), "train")
    assert "'sky' is the only class" in check_dataset(data)[0]
