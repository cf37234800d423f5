"""docs/results/published.yaml and the page that is made from it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml
from helpers.model_cases import PARAMETERS
from helpers.official.recipes import NOT_RELEASED, OFFICIAL
from helpers.repository import ROOT

from maskformer.config.load import load_config
from maskformer.modeling.model_info import model_info

FOLDER = ROOT / "docs" / "results"
DATA: dict[str, Any] = yaml.safe_load((FOLDER / "published.yaml").read_text(encoding="utf-8"))
ROWS: dict[str, dict[str, Any]] = {
    row["recipe"]: row for table in DATA["tables"] for row in table["rows"]
}


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "published_page.py")]
    page = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert page == (FOLDER / "published.md").read_text(encoding="utf-8"), "run make docs"


def test_every_model_has_a_row_and_its_weights() -> None:
    assert sum(len(table["rows"]) for table in DATA["tables"]) == len(ROWS)
    assert {*ROWS} == {*OFFICIAL.values(), *NOT_RELEASED}
    assert {name for name, row in ROWS.items() if "weights" not in row} == {*NOT_RELEASED}
    for official, recipe in OFFICIAL.items():
        *_, folder, file = ROWS[recipe]["weights"].split("/")
        assert file.startswith("model_final_")
        if not official.startswith("coco-panoptic/swin"):  # the zoo's links to these have no name
            assert folder == official.rpartition("/")[2]


def test_ablations_are_recipes() -> None:
    for change in DATA["ablations"]:
        for recipe in change["published"]:
            load_config(recipe, [change["change"]])


@pytest.mark.parametrize("recipe", ["ade20k/swin_b", "coco_panoptic/swin_b"])
def test_other_initial_weights_change_no_cost(recipe: str) -> None:
    model, other = (load_config(name).model for name in (recipe, f"{recipe}_in1k"))
    assert model.backbone.name.partition(".")[0] == other.backbone.name.partition(".")[0]
    backbone = other.backbone.model_copy(update={"name": model.backbone.name})
    assert other.model_copy(update={"backbone": backbone}) == model
    assert ROWS[recipe]["here"] == ROWS[f"{recipe}_in1k"]["here"]


@pytest.mark.parametrize("recipe", [name for name in ROWS if not name.endswith("_in1k")])
def test_parameters_and_multiply_adds(recipe: str) -> None:
    """What the page says of this model, and that it is what was published."""
    row = ROWS[recipe]
    config, (height, width) = load_config(recipe), row["size"]
    augmentation = config.data.augmentation
    if augmentation.kind == "semantic":
        assert augmentation.crop == (height, width)
    info = model_info(config.model, (height, width))
    assert info.total_parameters == PARAMETERS[recipe] == row["here"]["parameters"]
    billions = info.total_multiply_adds / 1e9
    assert billions == pytest.approx(row["here"]["multiply_adds"], abs=0.06)
    costs = row.get("costs", {})
    assert costs.get("parameters", info.total_parameters / 1e6) == pytest.approx(
        info.total_parameters / 1e6, abs=0.51
    )
    # The paper's figures are rounded, and count norms and resizing, too.
    assert billions == pytest.approx(costs.get("multiply_adds", billions), rel=0.015)
