"""A run that version 0.1.0 wrote, and that was killed after step 2 of 4, is still of use.

Its folder is stored as it was, but for the log of its losses. Its weights were rounded to bfloat16
and its moments evened out, so that it is small, before they were scored, saved and trained further.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.training import build_trainer, scalars
from safetensors.torch import load_file

from maskformer.commands import evaluate
from maskformer.config.load import load_config
from maskformer.modeling.maskformer import MaskFormer

ARCHIVE = Path(__file__).with_name("run_of_0_1_0.tar.xz")
LAST = "checkpoints/step_0000002"
LOSSES = {3: 9.012, 4: 8.698}
"""That 0.1.0 printed when it went on from this checkpoint."""


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run_of_0_1_0"


def test_weights_are_those_that_were_saved(old_run: Path) -> None:
    loaded = MaskFormer.from_pretrained(old_run / LAST).state_dict()
    saved = load_file(old_run / LAST / "model.safetensors")
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name


def test_scores_are_those_of_then(old_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    options: dict[str, bool] = {"save_maps": False, "tta": False}
    evaluate.run(old_run, None, [], output, **options, backend="auto", device="cpu")
    scores = json.loads((output / "metrics.json").read_text())
    then = json.loads((old_run / LAST / "score.json").read_text())["score"]
    assert scores["miou"] == pytest.approx(then, abs=1e-4)


def test_training_goes_on_as_then(old_run: Path) -> None:
    resumed = build_trainer(load_config(old_run / "recipe.yaml"), old_run, resume=True, cpu=True)
    assert resumed.step == 2
    resumed.fit()
    assert scalars(old_run, "train/loss") == pytest.approx(LOSSES, abs=1e-2)
    assert (old_run / "checkpoints" / "last").resolve().name == "step_0000004"
