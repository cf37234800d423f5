"""TensorBoard, and other trackers through accelerate."""

from __future__ import annotations

import errno
import importlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from helpers.recipes import TINY, tiny_recipe
from helpers.training import build_trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from maskformer.config.load import parse_config, to_yaml
from maskformer.errors import ConfigError, OutputError
from maskformer.training.log_folder import OWNER
from maskformer.training.recorders.trackers import check_trackers


class Recorder(GeneralTracker):
    """In the place of a tracker whose package is not here; `broken` fails while it records."""

    name = "wandb"
    requires_logging_directory = False
    runs: ClassVar[list[Recorder]] = []
    broken = False

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.started = (project, options)
        self.values: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = False
        self.runs.append(self)

    @property
    def tracker(self) -> Recorder:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.values = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if self.broken:
            raise OSError("no network")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])
    monkeypatch.setattr(Recorder, "runs", [])
    return Recorder


def test_another_tracker_gets_the_figures(recorder: type[Recorder], tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=2, trackers=["wandb"], freeze="stem")
    build_trainer(recipe, tmp_path / "mine", cpu=True).fit()
    [run] = recorder.runs
    project, options = run.started
    assert project == "maskformer"
    assert options["name"] == "mine"
    assert run.values["train.lr"] == 0.001
    assert run.values["train.freeze"] == "['stem']"
    train = {step: values for step, values in run.logged if "train/loss" in values}
    assert set(train) == {1, 2}
    assert {"train/loss_ce", "train/lr", "train/epoch"} <= train[1].keys()
    [val] = [(step, values) for step, values in run.logged if "val/miou" in values]
    assert val[0] == 2
    assert run.finished
    assert not list((tmp_path / "mine" / "tensorboard").glob("events*"))  # not asked for


def test_rates_are_those_of_the_step_that_was_done(
    recorder: type[Recorder], tmp_path: Path
) -> None:
    """Step t of T has the rate lr (1 - (t - 1) / T)^0.9, the backbone's a tenth of it."""
    recipe = tiny_recipe(
        steps=3, trackers=["wandb"], lr=0.01, backbone_lr_multiplier=0.1, warmup_steps=0
    )
    build_trainer(recipe, tmp_path / "mine", cpu=True).fit()
    [run] = recorder.runs
    logged = {step: values for step, values in run.logged if "train/lr" in values}
    assert sorted(logged) == [1, 2, 3]
    for step, values in logged.items():
        rate = 0.01 * (1 - (step - 1) / 3) ** 0.9
        assert values["train/lr"] == pytest.approx(rate)
        assert values["train/lr_backbone"] == pytest.approx(rate / 10)


def test_a_tracker_that_fails_ends_no_training(
    recorder: type[Recorder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Recorder, "broken", True)
    recipe = tiny_recipe(steps=3, trackers=["tensorboard", "wandb"])
    assert build_trainer(recipe, tmp_path / "run", cpu=True).fit()["step"] == 3
    said = capsys.readouterr().out
    assert said.count("could not record step 1 for the trackers: no network") == 1
    assert "could not record step 2" not in said
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_a_tracker_that_cannot_start_is_said_before_the_first_step(
    recorder: type[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no login")

    monkeypatch.setattr(Recorder, "store_init_configuration", refuse)
    trainer = build_trainer(tiny_recipe(trackers="wandb"), tmp_path / "run", cpu=True)
    with pytest.raises(ConfigError, match=r"train\.trackers: could not start: no login"):
        trainer.fit()
    assert trainer.step == 0


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is here")
def test_a_missing_package_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.trackers: wandb .*pip install wandb"):
        build_trainer(tiny_recipe(trackers=["wandb"]), tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()


def test_trackers_that_an_old_accelerate_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [name for name in tracking.LoggerType.list() if name != "trackio"]
    monkeypatch.setattr(tracking.LoggerType, "list", lambda: known)
    with pytest.raises(
        ConfigError, match=r"does not support trackio.*pip install --upgrade accelerate"
    ):
        check_trackers(("tensorboard", "trackio"))


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_shows_the_recipe_and_hyperparameters(tmp_path: Path) -> None:
    trainer = build_trainer(tiny_recipe(steps=2), tmp_path / "run", cpu=True)
    trainer.fit()
    found = events(tmp_path / "run" / "tensorboard")
    [text] = found.Tensors("recipe/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert [line.removeprefix("    ") for line in shown.splitlines()] == recipe.splitlines()
    hparams = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"train.lr" in hparams
    experiment = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"val/miou" in experiment
    assert [event.step for event in found.Scalars("train/epoch")] == [1, 2]
    time.sleep(1)  # within a second, event files are read by number: .10 before .9
    # A resumed run adds its own, and takes nothing away.
    build_trainer(tiny_recipe(steps=3), tmp_path / "run", resume=True, cpu=True).fit()
    found = events(tmp_path / "run" / "tensorboard")
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3]


def test_a_log_folder_of_its_own(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=1, log_folder=str(tmp_path / "logs"))
    build_trainer(recipe, tmp_path / "run", cpu=True).fit()
    assert events(tmp_path / "logs" / "run").Scalars("train/loss")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_runs_of_one_name_do_not_mix_their_curves(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=1, log_folder=str(tmp_path / "logs"))
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    build_trainer(recipe, first, cpu=True).fit()
    with pytest.raises(FileExistsError, match=rf"logs/run holds the curves of the run {first}"):
        build_trainer(recipe, second, cpu=True)
    shutil.copytree(first, second, symlinks=True)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match=r"train\.log_folder"):
            build_trainer(recipe, second, cpu=True, **options)
    longer = tiny_recipe(steps=2, log_folder=str(tmp_path / "logs"))
    build_trainer(longer, first, resume=True, cpu=True).fit()
    shutil.rmtree(first)
    with pytest.raises(FileExistsError, match=r"remove them"):
        build_trainer(recipe, first, cpu=True)
    build_trainer(longer, second, resume=True, cpu=True).fit()  # as if the first was moved there
    found = events(tmp_path / "logs" / "run").Scalars("train/loss")
    assert [event.step for event in found] == [1, 2]


def test_a_run_goes_on_in_a_log_folder_without_a_name(tmp_path: Path) -> None:
    """Earlier versions did not note whose it is."""
    recipe = tiny_recipe(steps=1, log_folder=str(tmp_path / "logs"))
    build_trainer(recipe, tmp_path / "run", cpu=True).fit()
    (tmp_path / "logs" / "run" / OWNER).unlink()
    build_trainer(recipe, tmp_path / "run", resume=True, cpu=True)
    with pytest.raises(FileExistsError, match=r"of another run"):
        build_trainer(recipe, tmp_path / "other" / "run", cpu=True)


def test_a_log_folder_that_holds_the_data_is_refused(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "data" / "images" / "a.jpg")
    Image.new("L", (40, 40)).save(tmp_path / "data" / "labels" / "a.png")
    split = {"images": "images", "labels": "labels"}
    data = {"format": "folder", "root": str(tmp_path / "data"), "train": split, "val": split}
    values = {**TINY, "data": {**data, "classes": ["a", "b"]}}
    # The files of a run called `images` would lie among the images.
    values["train"] = {**TINY["train"], "log_folder": str(tmp_path / "data")}
    with pytest.raises(OutputError, match="cannot be the output folder"):
        build_trainer(parse_config(values), tmp_path / "images", cpu=True)
    assert "log_folder" in to_yaml(parse_config(values))
    assert "wandb" not in sys.modules


def test_a_tensorboard_that_cannot_be_opened_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is opened again with the next figures."""
    openings: list[Path] = []

    def open_third(folder: Path, **options: Any) -> SummaryWriter:
        openings.append(folder)
        if len(openings) <= 2:
            raise OSError(errno.ENOSPC, "no inode is free", f"events.{len(openings)}")
        return SummaryWriter(folder, **options)

    monkeypatch.setattr("maskformer.training.recorders.tensorboard.SummaryWriter", open_third)
    assert build_trainer(tiny_recipe(steps=3), tmp_path / "run", cpu=True).fit()["step"] == 3
    said = capsys.readouterr().out
    assert said.count("for TensorBoard: no inode is free") == 1
    losses = events(tmp_path / "run" / "tensorboard").Scalars("train/loss")
    assert [event.step for event in losses] == [2, 3]
