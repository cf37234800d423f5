"""The published recipes, value by value; tests/helpers/official/recipes.py has the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.official.recipes import NOT_RELEASED, OFFICIAL, official_values
from typer.testing import CliRunner

from maskformer.cli import app
from maskformer.config.load import flat_values, load_config
from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.config.schema import FolderConfig
from maskformer.data.datasets.class_names import describe_classes, read_names
from maskformer.data.labels.label_table import OUTSIDE, VOID, mapped_table

RECIPES = sorted([*OFFICIAL.values(), *NOT_RELEASED])
OURS = ("predict.", "eval.pictures", "eval.all_classes", "eval.batch_size", "data.max_pixels",
        "data.seed", "train.seed", "train.log_every", "train.log_folder", "train.keep",
        "train.trackers", "train.memory_format", "train.process_timeout")  # fmt: skip
"""Values with which the official configurations have nothing to do."""
CLASSES = ("data.classes", "data.colors", "data.label_map")
"""Compared by tests of their own."""
NO_COCO_CATEGORIES = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def folder(recipe: str) -> FolderConfig:
    data = load_config(recipe).data
    assert isinstance(data, FolderConfig)
    return data


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_value_is_the_official_one(recipe: str) -> None:
    found = flat_values(load_config(recipe))
    expected = official_values(recipe)
    assert {key: found[key] for key in expected} == expected
    rest = {key: value for key, value in found.items() if key not in expected}
    rest = {key: value for key, value in rest.items() if not key.startswith((*OURS, *CLASSES))}
    assert not any(rest.values()), "values that the table does not know"


def test_the_recipes_are_the_official_list() -> None:
    assert len(OFFICIAL) == 30
    assert len({*RECIPES}) == len(RECIPES) == 34
    listed = CliRunner().invoke(app, ["info"]).output.split()
    assert {name for name in listed if "/" in name} == {*RECIPES}


@pytest.mark.parametrize(
    ("recipe", "count", "some"),
    [
        ("ade20k/r50", 150, {0: "wall", 2: "sky", 12: "person", 149: "flag"}),
        ("ade20k_full/r50", 847, {0: "wall", 2: "sky", 7: "bed", 844: "gear shift"}),
        ("cityscapes/r101", 19, {0: "road", 11: "person", 16: "train", 18: "bicycle"}),
        ("coco_stuff_10k/r50", 171, {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("mapillary/r50", 65, {0: "Bird", 13: "Road", 55: "Car", 64: "Ego Vehicle"}),
    ],
)
def test_class_names(recipe: str, count: int, some: dict[int, str]) -> None:
    data = folder(recipe)
    assert data.classes is not None
    names = read_names(data.classes, Path("nowhere"), "data.classes")
    assert len(names) == len({*names}) == count
    assert {k: names[k] for k in some} == some
    info = describe_classes(names, tuple(range(count)), data)
    assert len({*info.colors}) == count
    if recipe.startswith(("cityscapes", "mapillary")):
        road = names.index("road" if count == 19 else "Road")
        assert info.colors[road] == (128, 64, 128)


def test_cityscapes_label_ids() -> None:
    data = folder("cityscapes/r101")
    assert data.label_map is not None
    table = mapped_table(data.label_map, data)
    ids = {number: k for k, number in enumerate(CITYSCAPES_IDS)}
    assert table.class_of == ids | {255: VOID}
    assert table.rest == VOID
    assert table.numbers == tuple(CITYSCAPES_IDS)  # label maps that are written hold label ids


def test_coco_stuff_numbers() -> None:
    data = folder("coco_stuff_10k/r50")
    assert data.label_map is not None
    table = mapped_table(data.label_map, data)
    numbers = [k for k in range(1, 183) if k not in NO_COCO_CATEGORIES]
    assert table.class_of == {number: k for k, number in enumerate(numbers)} | {0: VOID}
    assert table.rest == OUTSIDE
    things = [k for k in numbers if k <= 90]
    assert len(things) == 80


def test_coco_stuff_of_version_1_0() -> None:
    """As the comment in the recipe says."""
    comment = (CONFIG_FOLDER / "coco_stuff_10k" / "_classes.yaml").read_text().partition("\ndata:")
    given = [word for word in comment[0].split() if word.startswith("data.")]
    data = load_config("coco_stuff_10k/r50", given).data
    assert isinstance(data, FolderConfig)
    assert (data.label_map, data.label_offset, data.ignore) == (None, 2, (1,))
    assert data.classes == Path("coco_stuff_10k/classes.txt")
