"""`make experiments`: what is trained, kept and said of it."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.repository import ROOT
from PIL import Image

from maskformer.config.load import load_config
from maskformer.modeling.criterion import build_criterion

FOLDER = ROOT / "tools" / "experiments"
TINY = (
    *("model.backbone.name=lcnet_050", "model.backbone.weights=null", "train.warmup_steps=0"),
    *("model.backbone.pretrained=false", "data.augmentation.crop=[32,32]", "train.workers=0"),
    *("data.augmentation.short_sides=[48]", "data.test_short_side=48", "train.batch_size=2"),
    *("train.steps=2", "train.evaluate_every=2"),
)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    return {name: importlib.import_module(name) for name in ("plan", "runs", "report")}


def write_camvid(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            labels = generator.integers(0, 12, (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            for folder, image in ((split, pixels), (f"{split}annot", labels)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(root / folder / f"{index}.png")
    return root


def record(variant: str, seed: int, miou: float) -> dict[str, Any]:
    setting = {"setting": {"train": {"steps": 7}}, "overrides": []}
    return {"variant": variant, "seed": seed, **setting, "figures": {"miou": miou}}


def test_every_variant_is_a_recipe(tools: dict[str, ModuleType]) -> None:
    plan = tools["plan"]
    for variant in plan.VARIANTS:
        config = load_config(plan.SETTING, tools["runs"].Run(variant, 1).values)
        assert config.train.seed == 1
        build_criterion(config)
    named = {name for experiment in plan.EXPERIMENTS for name in experiment.variants}
    assert named == {*plan.VARIANTS, plan.GENERAL}


def test_a_run_is_trained_once_and_its_results_are_kept(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools["report"], "draw", lambda *_: None)
    data, results = write_camvid(tmp_path / "camvid"), tmp_path / "results"
    arguments = ["--variants", "maskformer", "--seeds", "0", "--data", str(data)]
    arguments += ["--runs", str(tmp_path / "runs"), "--results", str(results)]
    main = runpy.run_path(str(FOLDER / "__main__.py"))["main"]
    main([*TINY, *arguments])
    kept = json.loads((results / "ablation" / "maskformer" / "seed_0.json").read_text())
    assert kept["figures"]["step"] == 2
    assert kept["overrides"] == [*TINY, "train.seed=0"]
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["cost"]["cpu_seconds"] > 0
    general = json.loads((results / "ablation" / "general_inference" / "seed_0.json").read_text())
    assert 0 <= general["figures"]["miou"] <= 1
    page = (results / "ablation.md").read_text()
    assert "`train.steps=2`" in page
    assert "`per_pixel` (0, 1, 2)" in page
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("trains again"))
    main([*TINY, *arguments])
    assert not tools["runs"].Run("maskformer", 0, (*TINY, "train.lr=1")).is_done(results)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((2.0, 3.0, 4.0), "+3.0 ± 1.0 over 3 seeds, as in the paper."),
        ((-2.0, -3.0, -4.0), "-3.0 ± 1.0 over 3 seeds, **unlike the paper.**"),
        ((2.0, -3.0), "-0.5 ± 3.5 over 2 seeds, which does not tell them apart."),
        ((2.0,), "+2.0 with one seed, which is too few to say."),
        ((), ""),
    ],
)
def test_what_the_page_says(
    tools: dict[str, ModuleType], gains: tuple[float, ...], said: str
) -> None:
    records = [record("per_pixel", seed, 0.5) for seed in range(3)]
    records += [record("per_pixel_plus", seed, 0.5 + gain / 100) for seed, gain in enumerate(gains)]
    page = tools["report"].page(records, "ablation")
    assert (f"PerPixelBaseline 39.2 (+2.7). Here: {said}" in page) == bool(gains)
    assert ("| PerPixelBaseline | 50.0 ± 0.0 | 3 |" in page) == bool(gains)  # else no table yet
    assert "trains 7 steps" in page
    assert "## Mask loss" not in page


def test_plots(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scores = tools["report"].scores_of(
        [record(name, 0, 0.5) for name in ("per_pixel", "maskformer")]
    )
    tools["report"].draw(scores, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["architecture.svg"]


def test_plots_need_matplotlib(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[experiments\]'"):
        tools["report"].draw({}, tmp_path)
