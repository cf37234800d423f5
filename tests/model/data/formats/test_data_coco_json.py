"""COCO panoptic JSON of unknown origin: whatever it holds, one line that says where and what."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hostile.images import write_special
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskformer.config.schema import CocoPanopticConfig
from maskformer.data import Dataset, build_dataset, check_dataset
from maskformer.errors import DatasetError

pytestmark = pytest.mark.timeout(60)

CONTENT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "x.jpg", "height": 2, "width": 2}],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "x.png",
            "segments_info": [
                {"id": 5, "category_id": 1, "iscrowd": 0, "area": 2, "bbox": [0, 0, 1, 2]},
                {"id": 9, "category_id": 7, "iscrowd": 1, "area": 2, "bbox": [1, 0, 1, 2]},
            ],
        }
    ],
    "categories": [
        {"id": 1, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
        {"id": 7, "name": "cat", "isthing": 1},
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.new("RGB", (2, 2)).save(tmp_path / "x.jpg")
    Image.fromarray(np.array([[[5, 0, 0], [9, 0, 0]]] * 2, np.uint8)).save(tmp_path / "x.png")
    return tmp_path


def dataset(root: Path) -> Dataset:
    split = {"images": ".", "panoptic": ".", "annotations": "x.json"}
    return build_dataset(CocoPanopticConfig(root=root, train=split, val=split), "train")


def changed(path: tuple[int | str, ...], value: Any) -> dict[str, Any]:
    """The sound content with one value replaced; `...` removes it."""
    content = copy.deepcopy(CONTENT)
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def refusal(root: Path, content: Any) -> str:
    (root / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError) as caught:
        dataset(root)
    message = str(caught.value)
    assert "x.json" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 600 + len(str(root))
    return message


SEGMENT = ("annotations", 0, "segments_info", 1)
NUMBERS = [2**63, -1, 10**30, float("inf"), float("nan"), 7.9, True, None, [], {}]


@pytest.mark.parametrize("value", [*NUMBERS, "7", 2**24, ...], ids=repr)
def test_segment_ids(root: Path, value: Any) -> None:
    assert "annotations[0].segments_info[1].id: " in refusal(root, changed((*SEGMENT, "id"), value))


@pytest.mark.parametrize("value", [*NUMBERS, "7", ...], ids=repr)
def test_category_ids(root: Path, value: Any) -> None:
    message = refusal(root, changed((*SEGMENT, "category_id"), value))
    assert "annotations[0].segments_info[1].category_id: " in message
    assert "categories[1].id: " in refusal(root, changed(("categories", 1, "id"), value))


@pytest.mark.parametrize("value", [*NUMBERS, ...], ids=repr)
def test_image_ids(root: Path, value: Any) -> None:
    assert "images[0].id: " in refusal(root, changed(("images", 0, "id"), value))
    message = refusal(root, changed(("annotations", 0, "image_id"), value))
    assert "annotations[0].image_id: " in message


@pytest.mark.parametrize("value", [5, None, ["x.jpg"], ...], ids=repr)
def test_file_names(root: Path, value: Any) -> None:
    assert "images[0].file_name: " in refusal(root, changed(("images", 0, "file_name"), value))
    path = ("annotations", 0, "file_name")
    assert "annotations[0].file_name: " in refusal(root, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("images",), {"id": 1}, "images: Input should be a list, got {'id': 1}"),
        (("images", 0), 5, "images[0]: Input should be"),
        (("annotations",), {"0": {}}, "annotations: Input should be a list"),
        (("annotations", 0), [1], "annotations[0]: Input should be"),
        (("annotations", 0, "segments_info"), {}, "annotations[0].segments_info: Input should be"),
        (SEGMENT, [5], "annotations[0].segments_info[1]: Input should be"),
        ((*SEGMENT, "iscrowd"), "perhaps", "segments_info[1].iscrowd: Input should be"),
        (("categories",), {"1": "sky"}, "categories: Input should be a list"),
        (("categories", 0), "sky", "categories[0]: Input should be"),
        (("categories", 1, "name"), ["cat"], "categories[1].name: Input should be"),
        (("categories", 1, "isthing"), 2, "categories[1].isthing: Input should be"),
        (("categories", 0, "color"), [1, 2], "categories[0].color[2]: Field required"),
        (("categories", 0, "color"), [1, 2, 300], "categories[0].color[2]: Input should be"),
        (("categories", 1, "id"), 1, "list a category id twice"),
    ],
)
def test_wrong_types(root: Path, path: tuple[int | str, ...], value: Any, said: str) -> None:
    assert said in refusal(root, changed(path, value))


def test_duplicates(root: Path) -> None:
    other = {"id": 1, "file_name": "y.jpg"}
    message = refusal(root, CONTENT | {"images": [*CONTENT["images"], other]})
    assert "gives the image id 1 to x.jpg and to y.jpg" in message
    message = refusal(root, CONTENT | {"annotations": CONTENT["annotations"] * 2})
    assert "several annotations for the image ids 1; remove" in message
    annotation = CONTENT["annotations"][0]
    images = [*CONTENT["images"], {"id": 2, "file_name": "./x.jpg"}]
    annotations = [annotation, annotation | {"image_id": 2, "file_name": "y.png"}]
    message = refusal(root, CONTENT | {"images": images, "annotations": annotations})
    assert "several annotations for the images x.jpg; remove" in message
    images = [*CONTENT["images"], {"id": 2, "file_name": "y.jpg"}]
    annotations = [annotation, annotation | {"image_id": 2}]
    message = refusal(root, CONTENT | {"images": images, "annotations": annotations})
    assert "several annotations for the PNGs x.png; remove" in message
    (root / "x.json").write_text(json.dumps(CONTENT | {"images": CONTENT["images"] * 2}))
    assert len(dataset(root)) == 1


def test_whole_numbers_may_be_written_as_fractions(root: Path) -> None:
    content = changed((*SEGMENT, "id"), 9.0)
    content["annotations"][0]["image_id"] = content["images"][0]["id"] = 1.0
    content["categories"][1]["id"] = 7.0
    (root / "x.json").write_text(json.dumps(content))
    data = dataset(root)
    assert data.info.category_ids == (1, 7)
    assert (data[0].image_id, data[0].labels.tolist()) == (1, [0, 1])


@pytest.mark.parametrize("value", ["yes", "on", "t", "", 2, 0.5, None, [0], float("nan")], ids=repr)
def test_what_is_no_flag(root: Path, value: Any) -> None:
    for path in ((*SEGMENT, "iscrowd"), ("categories", 1, "isthing")):
        message = refusal(root, changed(path, value))
        assert f"{path[-1]}: Input should be 0, 1, true or false, got " in message


@pytest.mark.parametrize("false", [0, False, "0", "false", "False", 0.0])
@pytest.mark.parametrize("true", [1, True, "1", "true", "TRUE", 1.0])
def test_flags(root: Path, false: Any, true: Any) -> None:
    content = copy.deepcopy(CONTENT)
    for category, value in zip(content["categories"], (false, true), strict=True):
        category["isthing"] = value
    for segment, value in zip(
        content["annotations"][0]["segments_info"], (false, true), strict=True
    ):
        segment["iscrowd"] = value
    (root / "x.json").write_text(json.dumps(content))
    data = dataset(root)
    assert data.info.things == {1}
    assert data[0].crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"annotations":' * 100_000,
        json.dumps(CONTENT)[:-1] + ', "info": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"annotations": [' + "9" * 100_000 + "]}",
        '{"annotations": 1e999',
        "\0",
        "nan",
        "",
    ],
    ids=["lists", "mappings", "elsewhere", "digits", "infinite", "nul", "nan", "empty"],
)
def test_text_that_is_no_json(root: Path, text: str) -> None:
    assert "x.json cannot be read as JSON: " in refusal(root, text)


@pytest.mark.parametrize("case", ["pipe", "socket", "folder", "endless device", "link to itself"])
def test_no_regular_file(root: Path, case: str) -> None:
    write_special(root / "x.json", case)
    with pytest.raises(DatasetError, match=r"x\.json cannot be read as JSON: "):
        dataset(root)


def test_categories_of_their_own_file(root: Path) -> None:
    (root / "x.json").write_text(json.dumps({**CONTENT, "categories": None}))
    split = {"images": ".", "panoptic": ".", "annotations": "x.json"}
    config = CocoPanopticConfig(root=root, train=split, val=split, categories="classes.json")
    for content, said in (
        ({}, "has no categories"),
        (5, "categories: Input should be a list, got 5"),
        ([{"id": 1, "name": "a"}], r"categories\[0\]\.isthing: Field required"),
    ):
        (root / "classes.json").write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=rf"classes\.json .*{said}"):
            build_dataset(config, "train")


def paths(value: Any, above: tuple[int | str, ...] = ()) -> list[tuple[int | str, ...]]:
    items: Any = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path for key, item in items for path in ((*above, key), *paths(item, (*above, key)))]


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(["1", "0", "x.jpg", "x.png", "../x.jpg", "/x.jpg", "a" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "images", "file_name", "isthing"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.sampled_from(paths(CONTENT)), anything), max_size=3))
def test_any_structure(root: Path, changes: list[tuple[tuple[int | str, ...], Any]]) -> None:
    content = copy.deepcopy(CONTENT)
    for path, value in changes:
        place: Any = content
        try:
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    (root / "x.json").write_text(json.dumps(content))
    try:
        check_dataset(dataset(root))
    except DatasetError as error:
        said = str(error)
    else:
        return
    assert os.fspath(root) in said
    assert len(said.splitlines()) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=anything, key=st.sampled_from(["", "images", "annotations", "categories"]))
def test_any_content(root: Path, content: Any, key: str) -> None:
    whole = content if not key else CONTENT | {key: content}
    (root / "x.json").write_text(json.dumps(whole))
    if whole != CONTENT:
        try:
            dataset(root)
        except DatasetError as error:
            said = str(error)
        else:
            return
        assert os.fspath(root) in said
