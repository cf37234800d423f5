"""What interrupts a run costs no finished step, and a resumed run says what has changed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.model_cases import tiny_model
from helpers.recipes import TINY, tiny_recipe
from helpers.training import build_trainer

from maskformer import MaskFormer, Predictor
from maskformer.config.load import flat_values, parse_config
from maskformer.data import Dataset, Sample
from maskformer.errors import CheckpointError, TrainingStoppedError, WorkerError
from maskformer.evaluation.evaluate import Evaluation
from maskformer.training.checkpoints.checksums import CHECKSUMS, find_damage
from maskformer.training.checkpoints.contents import (
    FORMERLY,
    load_info,
    load_recipe,
    resolve_checkpoint,
)
from maskformer.training.checkpoints.resuming import checkpoint_to_resume
from maskformer.training.trainer import Trainer
from maskformer.weights.locate import find_checkpoint


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    build_trainer(tiny_recipe(), run, cpu=True).fit()
    return run


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = find_checkpoint(run / "checkpoints")
    assert last is not None
    return MaskFormer.from_pretrained(last).state_dict()


def same_weights(run: Path, other: Path) -> bool:
    first, second = weights(run), weights(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())


class Troubled:
    """A data set that, in whichever process reads, does something at the tenth sample drawn."""

    def __init__(self, dataset: Dataset, trouble: Callable[[], None]) -> None:
        self.dataset = dataset
        self.info = dataset.info
        self.num_images = dataset.num_images
        self.trouble = trouble
        self.read = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        if self.read == 10:
            self.trouble()
        return self.dataset[index]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_costs_no_step(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(workers=1), run, cpu=True)
    trainer.parts.data.train = Troubled(trainer.parts.data.train, kill_self)
    with pytest.raises(
        WorkerError, match=r"(?s)SIGKILL.*Step [34] is saved; continue with: .*--resume"
    ):
        trainer.fit()
    resumed = build_trainer(tiny_recipe(), run, resume=True, cpu=True)
    assert resumed.step in (3, 4)  # a batch that was ready may be lost with the worker
    resumed.fit()
    assert same_weights(run, finished_run)


def test_a_worker_killed_in_an_evaluation_costs_no_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(workers=1, steps=4, evaluate_every=2), run, cpu=True)
    trainer.parts.data.val = Troubled(trainer.parts.data.val, kill_self)
    trainer.parts.data.val.read = 9
    with pytest.raises(WorkerError, match=r"(?s)SIGKILL.*Step 2 is saved"):
        trainer.fit()
    assert build_trainer(tiny_recipe(), run, resume=True, cpu=True).step == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_the_wait_for_data(finished_run: Path, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(workers=workers), run, cpu=True)
    trainer.parts.data.train = Troubled(trainer.parts.data.train, lambda: time.sleep(60))
    me = os.getpid()

    def send() -> None:
        while trainer.step < 4:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(me, signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(TrainingStoppedError, match="stopped at step 4/6"):
        trainer.fit()
    assert time.monotonic() - started < 30
    build_trainer(tiny_recipe(), run, resume=True, cpu=True).fit()
    assert same_weights(run, finished_run)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_part_of_a_step_is_not_saved(tmp_path: Path, accumulate: int) -> None:
    """Batch statistics and random numbers of a step whose second part has no data."""
    recipe = tiny_recipe(accumulate=accumulate)
    build_trainer(recipe, tmp_path / "whole", cpu=True).fit()
    run = tmp_path / "run"
    trainer = build_trainer(recipe, run, cpu=True)
    trainer.parts.data.train = Troubled(
        trainer.parts.data.train, lambda: signal.raise_signal(signal.SIGHUP)
    )
    with pytest.raises(TrainingStoppedError, match="step 4/6") as stop:
        trainer.fit()
    assert stop.value.exit_code == 129
    build_trainer(recipe, run, resume=True, cpu=True).fit()
    assert same_weights(run, tmp_path / "whole")


def after_step(trainer: Trainer, step: int, action: Callable[[], None]) -> None:
    train_step = trainer._train_step

    def wrapped(*args: Any) -> None:
        train_step(*args)
        if trainer.step + 1 == step:
            action()

    trainer._train_step = wrapped  # type: ignore[method-assign]


def test_a_save_can_be_asked_for(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(), run, cpu=True)
    after_step(trainer, 3, lambda: signal.raise_signal(signal.SIGUSR2))
    seen: list[str] = []
    after_step(trainer, 4, lambda: seen.extend(p.name for p in run.glob("checkpoints/step_*")))
    trainer.fit()
    assert seen == ["step_0000003"]
    assert "saved step 3/6" in capsys.readouterr().out
    assert same_weights(run, finished_run)


def test_a_signal_within_a_save_waits_for_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(checkpoint_every=2), run, cpu=True)
    checkpointer = trainer.parts.checkpointer
    state = checkpointer._state

    def signalled(step: int) -> dict[str, Any]:
        signal.raise_signal(signal.SIGUSR1)
        return state(step)

    checkpointer._state = signalled  # type: ignore[method-assign]
    with pytest.raises(TrainingStoppedError, match="step 2/6") as stop:
        trainer.fit()
    assert stop.value.exit_code == 138
    last = find_checkpoint(run / "checkpoints")
    assert last is not None
    assert last.name == "step_0000002"
    assert not find_damage(last)


def test_an_interrupted_evaluation_is_made_up_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(steps=4, evaluate_every=2)
    trainer = build_trainer(recipe, run, cpu=True)
    trainer.parts.evaluator._stop_if_asked = lambda: signal.raise_signal(signal.SIGTERM)  # type: ignore[method-assign]
    with pytest.raises(TrainingStoppedError, match="step 2/4"):
        trainer.fit()
    resumed = build_trainer(recipe, run, resume=True, cpu=True)
    evaluated: list[int] = []
    evaluate = resumed._evaluate

    def counted() -> Evaluation:
        evaluated.append(resumed.step)
        return evaluate()

    resumed._evaluate = counted  # type: ignore[method-assign]
    resumed.fit()
    assert evaluated == [2, 4]
    build_trainer(recipe, tmp_path / "whole", cpu=True).fit()
    assert same_weights(run, tmp_path / "whole")


def test_an_evaluation_is_not_repeated(copied_run: Path) -> None:
    recipe = tiny_recipe(steps=7, evaluate_every=6)
    resumed = build_trainer(recipe, copied_run, resume=True, cpu=True)
    assert not resumed.parts.evaluation_due


def older_and_newer(run: Path) -> tuple[Path, Path]:
    """Adds a step to a run whose best checkpoint stays step 6."""
    old = find_checkpoint(run / "checkpoints")
    assert old is not None
    (old / "score.json").write_text('{"score": 2.0}')
    build_trainer(tiny_recipe(steps=7), run, resume=True, cpu=True).fit()
    new = find_checkpoint(run / "checkpoints")
    assert new is not None
    assert (old.name, new.name) == ("step_0000006", "step_0000007")
    return old, new


def two_steps(run: Path) -> tuple[Path, Path]:
    """The same, without training: the later step is a copy."""
    old = find_checkpoint(run / "checkpoints")
    assert old is not None
    new = Path(shutil.copytree(old, old.with_name("step_0000007")))
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "last").symlink_to(new.name)
    return old, new.resolve()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "rng_0.pt"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    copied_run: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    old, new = older_and_newer(copied_run)
    flip(new / name)
    assert build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True).step == 6
    out = " ".join(capsys.readouterr().out.split())
    assert f"skipped {new}: {name} does not match its checksum" in out
    assert "resuming from step_0000006" in out
    flip(old / name)
    with pytest.raises(CheckpointError, match=r"cannot resume from .*step_0000007: .*checksum"):
        build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True)


@pytest.mark.parametrize("damage", [None, b"", b"{\x00", b"[1]"])
@pytest.mark.parametrize("name", ["config.json", "recipe.yaml", "dataset.json"])
def test_a_checkpoint_with_a_damaged_text_is_passed_over(
    copied_run: Path, name: str, damage: bytes | None
) -> None:
    old, new = two_steps(copied_run)
    (new / name).unlink()
    if damage is not None:
        (new / name).write_bytes(damage)
    passed_over: list[str] = []
    kept = name == "dataset.json" and damage is None  # config.json has the names, too
    taken = checkpoint_to_resume(copied_run, passed_over.append)
    assert taken == (new if kept else old)
    assert [new.name in text and name in text for text in passed_over] == [True] * (not kept)


def test_an_incomplete_checkpoint_is_named(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied_run / "checkpoints" / ".step_0000009.partial").mkdir()
    assert build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True).step == 6
    out = " ".join(capsys.readouterr().out.split())
    assert ".step_0000009.partial: its save was not finished" in out
    _, new = older_and_newer(copied_run)
    (new / "training_state.pt").unlink()
    assert build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True).step == 6
    out = " ".join(capsys.readouterr().out.split())
    assert f"skipped {new}: training_state.pt is missing" in out


def test_checkpoints_before_the_one_that_is_taken_are_not_read(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_steps(copied_run)
    read: list[Path] = []

    def watched(folder: Path) -> str:
        read.append(folder)
        return "" if folder != new else "it is damaged"

    monkeypatch.setattr("maskformer.training.checkpoints.resuming.find_damage", watched)
    passed_over: list[str] = []
    assert checkpoint_to_resume(copied_run, passed_over.append) == old
    assert [new.name in text for text in passed_over] == [True]
    assert read == [new, old]


def test_checkpoints_of_earlier_versions_have_no_checksums(copied_run: Path) -> None:
    last = find_checkpoint(copied_run / "checkpoints")
    assert last is not None
    assert {line.split()[1] for line in (last / CHECKSUMS).read_text().splitlines()} == {
        "model.safetensors",
        "rng_0.pt",
        "training_state.pt",
    }
    (last / CHECKSUMS).unlink()
    assert build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True).step == 6


def rename_classes(run: Path, change: Callable[[list[str]], list[str]]) -> None:
    file = run / "checkpoints" / "last" / "dataset.json"
    values = json.loads(file.read_text())
    values["classes"] = change(values["classes"])
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("rng_0.pt", lambda state: state.clear(), "cpu: Field required"),
        ("rng_0.pt", lambda state: state.update(cpu=torch.zeros(3)), "ByteTensor"),
        ("rng_0.pt", lambda state: state.update(cpu=[0]), "cpu: Input should be an instance"),
        ("training_state.pt", lambda state: state.clear(), "step: Field required"),
        ("training_state.pt", lambda state: state.pop("scaler"), "scaler: Field required"),
        ("training_state.pt", lambda state: state.update(step=-5), "step: .* got -5"),
        ("training_state.pt", lambda state: state.update(step=10**30), "step: .* less than"),
        ("training_state.pt", lambda state: state.update(step="x"), "step: .* got 'x'"),
        ("training_state.pt", lambda state: state.update(optimizer=[1]), "optimizer: "),
        ("training_state.pt", lambda state: state.update(optimizer={}), "param_groups"),
        ("training_state.pt", lambda state: state["optimizer"].update(param_groups=[1]), "int"),
        ("training_state.pt", lambda state: state["optimizer"].update(state=[1]), "_List"),
        ("training_state.pt", lambda state: state.update(weights={"a": 1}), ""),
        ("training_state.pt", lambda state: state.update(stale_evaluations=-1), "stale_eval"),
    ],
)
def test_a_damaged_training_state_is_named(
    copied_run: Path, name: str, damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    """Earlier versions wrote no checksums, which would tell."""
    checkpoint = find_checkpoint(copied_run / "checkpoints")
    assert checkpoint is not None
    (checkpoint / CHECKSUMS).unlink()
    state = torch.load(checkpoint / name)
    damage(state)
    torch.save(state, checkpoint / name)
    file = re.escape(str(checkpoint / name))
    with pytest.raises(CheckpointError, match=rf"cannot resume from {file}: .*{said}") as stop:
        build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", [1, 2, 3]),
        ("classes", "abc"),
        ("classes", {"a": 1, "b": 2, "c": 3}),
        ("classes", [["a"], "b", "c"]),
        ("classes", []),
        ("things", ["a"]),
        ("things", [7]),
        ("things", None),
        ("colors", [[math.nan] * 3] * 3),
        ("colors", [[300, -5, 1e30]] * 3),
        ("colors", ["abc"] * 3),
        ("colors", [[1, 2, 3]]),
        ("category_ids", ["a", "b", "c"]),
        ("category_ids", [None, 1, 2]),
        ("category_ids", [1, 1, 1]),
        ("category_ids", [0.5, 1, 2]),
        ("category_ids", [10**30, 1, 2]),
    ],
)
def test_damaged_names_of_classes_are_named(tmp_path: Path, key: str, value: Any) -> None:
    values = {"classes": [*"abc"], "things": [0], "colors": [[0, 0, 0]] * 3}
    values["category_ids"] = [1, 2, 3]
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(values))
    assert load_info(tmp_path).classes == ("a", "b", "c")
    file.write_text(json.dumps({**values, key: value}))
    with pytest.raises(CheckpointError, match=rf"{file}: .*\b{key}\b") as stop:
        load_info(tmp_path)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("count", [2, 4])
def test_names_of_another_number_of_classes_are_refused(tmp_path: Path, count: int) -> None:
    tiny_model(num_classes=3).save_pretrained(tmp_path)
    values = {"classes": [*"abcd"[:count]], "things": [], "colors": [[0, 0, 0]] * count}
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({**values, "category_ids": [*range(count)]}))
    with pytest.raises(CheckpointError, match=f"{file} has {count} classes, expected 3 as in the"):
        Predictor.from_pretrained(tmp_path)


def test_another_order_of_classes_is_refused(copied_run: Path, tmp_path: Path) -> None:
    rename_classes(copied_run, lambda names: names[::-1])
    with pytest.raises(CheckpointError, match=r"other classes: class 0 is .*--weights"):
        build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True)


def test_starting_from_other_classes_is_said(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_classes(copied_run, lambda names: [*names[:-1], "something"])
    build_trainer(tiny_recipe(), tmp_path / "new", weights=copied_run, cpu=True)
    out = " ".join(capsys.readouterr().out.split())
    assert "are not those of the data: class " in out
    assert "Weights follow the index of a class" in out


def test_weights_of_classes_in_another_order_follow_their_names(
    copied_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_classes(copied_run, lambda names: names[::-1])
    trainer = build_trainer(tiny_recipe(), tmp_path / "new", weights=copied_run, cpu=True)
    out = " ".join(capsys.readouterr().out.split())
    assert "are not those of the data: class 0 is" in out
    assert "The weights of each class follow its name" in out
    old = MaskFormer.from_pretrained(copied_run).state_dict()["class_embed.weight"]
    new = trainer.bare_model.state_dict()["class_embed.weight"]
    assert torch.equal(new, torch.cat([old[:-1].flip(0), old[-1:]]))


def test_renamed_classes_are_said(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rename_classes(copied_run, lambda names: ["something", *names[1:]])
    build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True)
    assert "class 0 is 'something' there" in " ".join(capsys.readouterr().out.split())


def test_what_a_resumed_run_does_not_do_as_before_is_said(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True)
    assert "resumed with" not in capsys.readouterr().out
    build_trainer(tiny_recipe(workers=1), copied_run, resume=True, cpu=True)
    assert "resumed with train.workers 0 -> 1\n" in capsys.readouterr().out
    shutil.copyfile(
        copied_run / "checkpoints" / "last" / "rng_0.pt",
        copied_run / "checkpoints" / "last" / "rng_1.pt",
    )
    recipe = parse_config({**TINY, "train": {**TINY["train"], "batch_size": 4}})
    build_trainer(recipe, copied_run, resume=True, cpu=True)
    out = " ".join(capsys.readouterr().out.split())
    assert "resumed with train.batch_size 2 -> 4, processes 2 -> 1: the results will not" in out


@pytest.mark.parametrize(
    "changes",
    [
        {"predict": {"opacity": 0.4}},
        {"eval": {**TINY["eval"], "batch_size": 1}},
        {"data": {**TINY["data"], "test_short_side": 48, "test_max_side": 90, "val_images": 2}},
    ],
)
def test_a_resumed_run_that_learns_the_same_is_no_other(
    copied_run: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    """What is drawn, or scored, otherwise, changes nothing that is learnt."""
    build_trainer(parse_config({**TINY, **changes}), copied_run, resume=True, cpu=True)
    out = capsys.readouterr().out
    assert "resumed with " in out
    assert "the results will not" not in out


def forget(checkpoint: Path, key: str) -> None:
    """Makes its recipe one of a version that did not know the key."""
    values = yaml.safe_load((checkpoint / "recipe.yaml").read_text())
    *path, name = key.split(".")
    section = values
    for part in path:
        section = section[part]
    del section[name]
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("key", FORMERLY)
def test_a_run_of_an_earlier_version_stays_as_it_was(copied_run: Path, key: str) -> None:
    checkpoint = resolve_checkpoint(copied_run)
    stated = flat_values(load_recipe(checkpoint, []))[key]
    forget(checkpoint, key)
    former = flat_values(load_recipe(checkpoint, []))[key]
    assert former != stated
    assert str(former).lower() == FORMERLY[key]
    assert flat_values(load_recipe(checkpoint, [f"{key}={stated}".lower()]))[key] == stated


def test_a_run_that_did_not_group_images_goes_on_without(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint says nothing of it: another recipe may, which is said."""
    checkpoint = resolve_checkpoint(copied_run)
    assert load_recipe(checkpoint, []).train.group_by_aspect
    forget(checkpoint, "train.group_by_aspect")
    earlier = load_recipe(checkpoint, [])
    assert not earlier.train.group_by_aspect
    assert load_recipe(checkpoint, ["train.group_by_aspect=true"]).train.group_by_aspect
    build_trainer(earlier, copied_run, resume=True, cpu=True)
    assert "resumed with" not in capsys.readouterr().out
    build_trainer(tiny_recipe(), copied_run, resume=True, cpu=True)
    out = " ".join(capsys.readouterr().out.split())
    assert "resumed with train.group_by_aspect False -> True: the results will not" in out
