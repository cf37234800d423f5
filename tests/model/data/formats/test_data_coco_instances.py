"""COCO instances: polygons and run lengths, overlaps, crowds, the background, and bad JSON."""

from __future__ import annotations

import copy
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.label_folders import data_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask

from maskformer.config.schema import CocoInstancesConfig
from maskformer.data import Dataset, build_dataset, check_dataset
from maskformer.data.datasets import coco_masks
from maskformer.data.datasets.coco_masks import (
    encode_mask,
    mask_of_runs,
    paint_runs,
    run_lengths,
    runs_of_segmentation,
)
from maskformer.errors import DatasetError

pytestmark = pytest.mark.timeout(60)
HEIGHT, WIDTH = 6, 8


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The pixels of an object, `[H, W]`."""
    return mask_of_runs(runs_of_segmentation(segmentation, height, width), height, width)


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(number: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 0, "category_id": category, "iscrowd": 0} | {
        "segmentation": segmentation,
        **more,
    }


CONTENT: dict[str, Any] = {
    "info": {"description": None},
    "images": [{"id": 0, "file_name": "img/x.jpg", "height": HEIGHT, "width": WIDTH}],
    "annotations": [
        annotation(0, 3, [box(0, 0, 4, 4)]),
        annotation(1, 3, [box(2, 2, 6, 6), box(7, 0, 8, 1)]),
        annotation(2, 5, {"size": [6, 8], "counts": [0, 12, 36]}, iscrowd=1),
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog", "supercategory": None}],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "img" / "x.jpg")
    return tmp_path


def config(root: Path, **settings: Any) -> CocoInstancesConfig:
    split = {"images": ".", "annotations": "x.json"}
    parsed = data_config("coco_instances", root, split, **settings)
    assert isinstance(parsed, CocoInstancesConfig)
    return parsed


def dataset(root: Path, content: Any = CONTENT, **settings: Any) -> Dataset:
    (root / "x.json").write_text(json.dumps(content))
    return build_dataset(config(root, **settings), "train")


def changed(key: str, **values: Any) -> dict[str, Any]:
    """The content with other values in the first entry of a list."""
    content = copy.deepcopy(CONTENT)
    content[key][0] |= values
    return content


def test_objects_lie_over_each_other_in_order(root: Path) -> None:
    data = dataset(root)
    assert data.info.classes == ("background", "cat", "dog")
    assert (data.info.things, data.info.category_ids) == ({1, 2}, (0, 3, 5))
    sample = data[0]
    assert (sample.name, sample.image_id, sample.file_name) == ("img/x", 0, "img/x.jpg")
    # The crowd, columns 0 and 1, is listed last and lies below.
    assert sample.labels.tolist() == [0, 2, 1, 1]
    assert sample.crowd.tolist() == [False, True, False, False]
    assert sample.segments.tolist() == [
        [2, 2, 2, 2, 0, 0, 0, 3],
        [2, 2, 2, 2, 0, 0, 0, 0],
        [2, 2, 3, 3, 3, 3, 0, 0],
        [2, 2, 3, 3, 3, 3, 0, 0],
        [1, 1, 3, 3, 3, 3, 0, 0],
        [1, 1, 3, 3, 3, 3, 0, 0],
    ]
    assert check_dataset(data) == []


def test_images_that_the_json_does_not_name_are_counted(root: Path) -> None:
    assert dataset(root).notes == ()  # type: ignore[attr-defined]
    for name in ("img/y.jpg", "img/z.PNG", "img/._x.jpg", "img/notes.txt", "elsewhere.jpg"):
        (root / name).write_bytes(b"")
    (note,) = dataset(root).notes  # type: ignore[attr-defined]
    said = "skipped in {}: 3 that the JSON does not list (img/._x.jpg, img/y.jpg, img/z.PNG)"
    assert note == said.format(root)


def test_what_is_covered_wholly_is_no_segment(root: Path) -> None:
    whole = annotation(4, 5, [box(0, 0, WIDTH, HEIGHT)])
    sample = dataset(root, CONTENT | {"annotations": [*CONTENT["annotations"], whole]})[0]
    assert sample.labels.tolist() == [2]
    assert sample.empty_segments == 0


def test_void_background(root: Path) -> None:
    data = dataset(root, background=None)
    assert data.info.classes == ("cat", "dog")
    assert data[0].semantic_map()[0].tolist() == [0, 0, 0, 0, -1, -1, -1, 0]


def test_a_category_that_is_the_background(root: Path) -> None:
    categories = [{"id": 0, "name": "_background_"}, *CONTENT["categories"]]
    data = dataset(root, CONTENT | {"categories": categories})
    assert data.info.classes == ("_background_", "cat", "dog")
    assert (data.info.things, data.info.category_ids) == ({1, 2}, (0, 3, 5))
    assert data[0].semantic_map()[0, 4:].tolist() == [0, 0, 0, 1]


def test_an_image_without_objects(root: Path) -> None:
    Image.new("RGB", (3, 3)).save(root / "img" / "y.jpg")
    images = [*CONTENT["images"], {"id": "y", "file_name": "img/y.jpg"}]
    sample = dataset(root, CONTENT | {"images": images})[1]
    assert sample.labels.tolist() == [0]
    assert (sample.segments == 0).all()


def test_label_map(root: Path) -> None:
    data = dataset(root, label_map={"cat": "animal", 5: "background"})
    assert data.info.classes == ("animal", "background")
    assert data.info.things == {0}
    assert data[0].labels.tolist() == [1, 0, 0]
    data = dataset(root, label_map={"cat": None, "dog": "dog"})
    assert data.info.classes == ("background", "dog")
    assert data[0].semantic_map()[5].tolist() == [1, 1, -1, -1, -1, -1, 0, 0]
    with pytest.raises(DatasetError, match="has the keys cat and 3, which are one category in"):
        dataset(root, label_map={"cat": "animal", 3: None, "*": "animal"})


def test_categories_that_become_one_class_of_stuff(root: Path) -> None:
    categories = [{"id": 3, "name": "a", "isthing": 0}, {"id": 5, "name": "b", "isthing": "0"}]
    sample = dataset(root, CONTENT | {"categories": categories}, label_map={"*": "c"})[0]
    assert sample.labels.tolist() == [0, 1]
    assert not sample.crowd.any()


@pytest.mark.parametrize("empty", [[], None, [[1, 1, 2, 2]], {"size": [6, 8], "counts": [48]}])
def test_objects_without_pixels_are_left_out_and_counted(root: Path, empty: Any) -> None:
    data = dataset(root, changed("annotations", segmentation=empty))
    assert data[0].labels.tolist() == [0, 2, 1]
    assert check_dataset(data)[0] == "listed segments without pixels were ignored: 1"


def test_a_share(root: Path) -> None:
    images = [{"id": k, "file_name": f"img/{k}.jpg"} for k in range(5)]
    for k in range(5):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "img" / f"{k}.jpg")
    train = dataset(root, CONTENT | {"images": images}, val=0.4)
    val = build_dataset(config(root, val=0.4), "val")
    assert [len(train), len(val)] == [3, 2]
    assert {sample.name for sample in train}.isdisjoint(sample.name for sample in val)


# Masks, compared with pycocotools' own.


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_run_lengths(mask: np.ndarray) -> None:
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [*mask.shape], "counts": coded["counts"].decode()}
    assert np.array_equal(decode_segmentation(text, *mask.shape), mask)
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    runs = np.diff([0, *edges, mask.size]).tolist()
    numbers = {"size": [*mask.shape], "counts": runs}
    assert np.array_equal(decode_segmentation(numbers, *mask.shape), mask)


coordinates = st.floats(-9, 2 * WIDTH, allow_nan=False)


@given(st.lists(st.lists(coordinates, min_size=6, max_size=6), min_size=1, max_size=9))
def test_polygons_of_one_object(polygons: list[list[float]]) -> None:
    drawn = coco_mask.decode(coco_mask.frPyObjects(polygons, 20, 20)).any(axis=2)
    assert np.array_equal(decode_segmentation(polygons, 20, 20), drawn)


def test_polygons_are_not_drawn_on_an_image_each() -> None:
    polygons = [box(k % 100, k // 100, k % 100 + 1, k // 100 + 1) for k in range(10_000)]
    tracemalloc.start()
    mask = decode_segmentation(polygons, 400, 300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.flatnonzero(mask.any(0)).tolist() == [*range(100)]
    assert mask.sum() == 10_000
    assert peak < 50e6


@pytest.mark.parametrize("text", ["o", "P", "?", "O", "oooooo0", "ooooooooooo0"])
def test_long_texts_are_given_up_early(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """They took seconds where a number grew with each character."""
    read: list[str] = []
    monkeypatch.setitem(vars(coco_masks), "ord", lambda code: read.append(code) or ord(code))
    with pytest.raises(DatasetError, match="its run lengths"):
        decode_segmentation({"size": [64, 80], "counts": text * 100_000}, 64, 80)
    assert len(read) < 1000


bad = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from([1e300, 2**63, -5, 6, 8, "52203"]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.fixed_dictionaries({"size": st.just([6, 8]) | inner, "counts": inner})
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(segmentation=bad)
def test_any_segmentation(segmentation: Any) -> None:
    try:
        mask = decode_segmentation(segmentation, HEIGHT, WIDTH)
    except DatasetError as error:
        said = str(error)
    else:
        assert mask.shape == (HEIGHT, WIDTH)
        assert mask.dtype == np.bool_
        return
    assert len(said) < 300


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (5, "neither a list of polygons nor run lengths"),
        ([1, 1, 2, 2, 3, 3], "is one polygon, expected a list of polygons"),
        ([[1, 1, 2, 2, 3]], "is not a list of pairs of numbers"),
        ([[1, 1, 2, float("nan"), 3, 3]], "is not a list of pairs of numbers"),
        ([[1, 1, 2, 2, 3, 999]], "beyond the image of 8x6 pixels by more than"),
        ({"size": [8, 6], "counts": [48]}, r"of size \[8, 6\], expected \[6, 8\]"),
        ({"size": [6, 8], "counts": [40]}, "do not add up to 6 x 8 pixels"),
        ({"size": [6, 8], "counts": [60, -12]}, "do not add up"),
        ({"size": [6, 8], "counts": "P" * 40}, "hold a number that does not end"),
        ({"size": [6, 8], "counts": "`1o"}, "hold a number that does not end"),
        ({"size": [6, 8], "counts": "O" * 40}, "do not add up"),
    ],
)
def test_what_is_no_shape(root: Path, segmentation: Any, said: str) -> None:
    data = dataset(root, changed("annotations", segmentation=segmentation))
    with pytest.raises(DatasetError, match=rf"x\.json: annotations\[0\]: .*{said}"):
        check_dataset(data)


# What is said about JSON of no use.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "has no annotations; expected a COCO instances JSON"),
        (CONTENT | {"annotations": [{"segments_info": []}]}, "set data.format: coco_panoptic"),
        (CONTENT | {"annotations": [{"bbox": [1, 2, 3, 4]}]}, "has boxes only"),
        (CONTENT | {"categories": None}, "COCO instances format: categories: Input should be a li"),
        (CONTENT | {"images": CONTENT["images"] * 2}, "lists two images with the id 0"),
        (
            changed("images", id=9),
            r"annotations\[0\] has the image_id 0, which is not in",
        ),
        (changed("annotations", category_id=4), r"annotations\[0\] has the category_id 4, which"),
        (changed("annotations", category_id=3.5), "category_id: Input should be a whole number"),
        (changed("annotations", iscrowd="maybe"), "iscrowd: Input should be 0, 1, true or false"),
        (changed("images", file_name="/etc/passwd"), "is outside of"),
        (changed("images", file_name="img/z.jpg"), "1 of 1 files that the JSON names are missing"),
        (changed("categories", id=5), "list a category id twice"),
    ],
)
def test_unusable_json(root: Path, content: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        dataset(root, content)


def test_shares_of_the_size_in_place_of_pixels(root: Path) -> None:
    shares = [annotation(0, 3, [box(0, 0, 1, 1)]), annotation(1, 5, [[0.1, 0.2, 0.5, 0.2, 1, 0.9]])]
    crowd = CONTENT["annotations"][2]
    for listed in (shares, [crowd, *shares], [annotation(2, 3, None), *shares]):
        with pytest.raises(DatasetError, match=r"x\.json: no coordinate .* is above 1, "):
            dataset(root, CONTENT | {"annotations": listed})
    # A small piece in the corner is no such file.
    data = dataset(root, CONTENT | {"annotations": [*shares, *CONTENT["annotations"]]})
    assert check_dataset(data)[0] == "listed segments without pixels were ignored: 1"


def test_names_that_begin_with_the_folder(root: Path) -> None:
    split = {"images": "img", "annotations": "x.json"}
    with pytest.raises(DatasetError, match=rf"relative to {root}: set data.train.images to it"):
        dataset(root, train=split)


def test_an_image_of_another_size(root: Path) -> None:
    data = dataset(root, changed("images", width=HEIGHT, height=WIDTH))
    with pytest.raises(DatasetError, match=r"x\.jpg is 8x6 pixels, but .*x\.json says 6x8"):
        check_dataset(data)


def test_without_pycocotools(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DatasetError, match=r"needs pycocotools .*pip install 'mfkernels\[coco\]'"):
        dataset(root)


def test_the_sample_of_a_labelling_tool(real_data: Path) -> None:
    """Its two exports, VOC and COCO, say the same but for the edges of polygons."""
    folder = real_data / "labelme_sample" / "instance_segmentation"
    split = {"images": ".", "annotations": "annotations.json"}
    data = build_dataset(config(folder / "data_dataset_coco", train=split, val=split), "train")
    assert data.info.classes[0] == "_background_"
    assert data.info.things == {*range(1, 21)}
    for sample in data:
        file = f"{Path(sample.name).name}.png"
        labels = Image.open(folder / "data_dataset_voc" / "SegmentationClass" / file)
        wanted = np.asarray(labels)
        same = sample.semantic_map().numpy() == wanted
        assert same[wanted != 255].mean() > 0.99


def test_what_is_painted_is_the_mask() -> None:
    rng = np.random.default_rng(0)
    canvas, expected = np.zeros(7 * 9, np.int32), np.zeros((7, 9), np.int32)
    for number in range(1, 6):
        mask = rng.random((7, 9)) < 0.4
        counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2)), prepend=0)
        runs = runs_of_segmentation({"size": [7, 9], "counts": counts.tolist()}, 7, 9)
        assert np.array_equal(mask_of_runs(runs, 7, 9), mask)
        paint_runs(canvas, runs, number)
        expected[mask] = number
    assert np.array_equal(canvas.reshape(9, 7).T, expected)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_are_those_of_the_mask(mask: np.ndarray) -> None:
    lengths = run_lengths(mask)
    assert np.array_equal(mask_of_runs(lengths.tolist(), *mask.shape), mask)
    assert (lengths[1:] > 0).all()
    expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert encode_mask(mask) == {**expected, "counts": expected["counts"].decode()}
