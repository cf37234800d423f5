from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from recipes import TINY, tiny_recipe, write_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskformer import MaskFormer
from maskformer.checkpoint import CheckpointError, find_checkpoint, resolve_checkpoint
from maskformer.config import parse_config
from maskformer.trainer import (
    Trainer,
    TrainingDivergedError,
    TrainingStoppedError,
    prepare_output,
)

COMMAND = [sys.executable, "-m", "maskformer", "train", "--cpu"]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one precision per process; the tests want several."""
    yield
    AcceleratorState._reset_state()


def scalars(run: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    Trainer(tiny_recipe(), run, cpu=True).fit()
    return run


def test_a_run_leaves_figures_pictures_and_a_checkpoint_to_use(finished_run: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert {"miou", "pq", "step", "train_images_per_second", "peak_memory_mb"} <= metrics.keys()
    assert metrics["step"] == 6
    assert len(list((finished_run / "predictions").glob("*.png"))) == 2
    model = MaskFormer.from_pretrained(resolve_checkpoint(finished_run))
    assert model.num_classes == 9
    assert all(math.isfinite(v) for v in scalars(finished_run, "train/loss_mask_0").values())


def test_a_run_is_not_overwritten_by_accident(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"--resume.*--overwrite"):
        Trainer(tiny_recipe(), finished_run, cpu=True)
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("keep")
    (run / "recipe.yaml").write_text("")
    (run / "checkpoints").mkdir()
    prepare_output(run, overwrite=True)
    assert [path.name for path in run.iterdir()] == ["mine.txt"]


def stop_after(trainer: Trainer, steps: int, number: int = signal.SIGTERM) -> None:
    """Sends the process a signal while step `steps` runs."""
    train_step = trainer._train_step

    def step(*args: Any) -> None:
        train_step(*args)
        if trainer.step + 1 == steps:
            signal.raise_signal(number)

    trainer._train_step = step  # type: ignore[method-assign]


def test_resuming_gives_the_very_same_run(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    trainer = Trainer(tiny_recipe(), run, cpu=True)
    stop_after(trainer, 3)
    with pytest.raises(TrainingStoppedError, match=rf"step 3/6.*--resume --output {run}") as stop:
        trainer.fit()
    assert stop.value.exit_code == 128 + signal.SIGTERM
    torch.manual_seed(123)  # the state of the generators comes from the checkpoint
    resumed = Trainer(tiny_recipe(), run, resume=True, cpu=True)
    assert resumed.step == 3
    resumed.fit()
    assert scalars(run, "train/loss") == scalars(finished_run, "train/loss")
    weights = [
        MaskFormer.from_pretrained(resolve_checkpoint(path)).state_dict()
        for path in (run, finished_run)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_the_signal_handlers_of_the_caller_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(tiny_recipe(), tmp_path / "run", cpu=True)
    stop_after(trainer, 1, signal.SIGINT)
    with pytest.raises(TrainingStoppedError) as stop:
        trainer.fit()
    assert stop.value.exit_code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        Trainer(tiny_recipe(), tmp_path, resume=True, cpu=True)


def test_accumulation_steps_once_per_batch(tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(accumulate=2, steps=2), tmp_path / "run", cpu=True)
    trainer.fit()
    assert trainer.step == 2
    state = trainer.optimizer.state_dict()["state"]
    assert {int(entry["step"]) for entry in state.values()} == {2}


def test_the_per_pixel_baselines_train(tmp_path: Path) -> None:
    for architecture in ("per_pixel", "per_pixel_plus"):
        values = {**TINY, "model": {**TINY["model"], "architecture": architecture}}
        values["train"] = {**TINY["train"], "steps": 2}
        metrics = Trainer(parse_config(values), tmp_path / architecture, cpu=True).fit()
        assert math.isfinite(metrics["miou"])
        assert math.isfinite(metrics["pq"])


def test_bf16_trains(tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(precision="bf16", steps=2), tmp_path / "run", cpu=True)
    trainer.fit()
    assert all(math.isfinite(v) for v in scalars(tmp_path / "run", "train/loss").values())


def test_weights_start_a_new_run(finished_run: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(), tmp_path / "run", weights=finished_run, cpu=True)
    expected = MaskFormer.from_pretrained(resolve_checkpoint(finished_run)).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trainer.bare_model.state_dict().items())
    assert trainer.step == 0


def test_a_wrong_class_count_is_refused(tmp_path: Path) -> None:
    values = {**TINY, "model": {**TINY["model"], "num_classes": 4}}
    with pytest.raises(ValueError, match=r"model\.num_classes is 4, .* 9 classes"):
        Trainer(parse_config(values), tmp_path / "run", cpu=True)


def poison_losses(trainer: Trainer, bad: Iterator[bool]) -> None:
    total = trainer.criterion.total

    def poisoned(losses: dict[str, torch.Tensor]) -> torch.Tensor:
        return total(losses) * (math.nan if next(bad) else 1.0)

    trainer.criterion.total = poisoned  # type: ignore[method-assign]


def test_a_bad_step_is_skipped_and_counted(tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(log_every=6), tmp_path / "run", cpu=True)
    poison_losses(trainer, iter([False, True, False, False, True, False]))
    trainer.fit()
    assert trainer.skipped.item() == 2
    assert all(torch.isfinite(p).all() for p in trainer.bare_model.parameters())
    assert scalars(tmp_path / "run", "train/skipped_steps") == {6: 2.0}


def test_a_run_that_diverged_ends_with_advice(tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe(log_every=3), tmp_path / "run", cpu=True)
    poison_losses(trainer, iter([True] * 6))
    with pytest.raises(TrainingDivergedError, match=r"3 steps before step 3.*train\.lr"):
        trainer.fit()


def limit_file_size() -> None:
    """What a full disk looks like to the process that writes: the write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_full_disk_keeps_the_last_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    run = tmp_path / "run"
    command = [*COMMAND, "--config", str(recipe), "--output", str(run)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.run(
        [*command, "train.steps=2"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert first.returncode == 0, first.stderr
    kept = find_checkpoint(run / "checkpoints")
    second = subprocess.run(
        [*command, "--resume", "train.steps=6", "train.checkpoint_every=3"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit_file_size,
    )
    assert second.returncode == 1, second.stdout + second.stderr
    assert "Training goes on" in second.stdout  # at step 3
    assert f"The last complete checkpoint is {kept}" in second.stderr  # at the end
    assert "Traceback" not in second.stderr
    assert find_checkpoint(run / "checkpoints") == kept
    assert [p.name for p in (run / "checkpoints").iterdir() if "partial" in p.name] == []
    MaskFormer.from_pretrained(resolve_checkpoint(run))


def test_a_killed_process_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = {**TINY, "train": {**TINY["train"], "steps": 100_000, "checkpoint_every": 1}}
    recipe = write_recipe(tmp_path, values)
    process = subprocess.Popen([*COMMAND, "--config", str(recipe), "--output", str(run)])
    try:
        deadline = time.monotonic() + 120
        while find_checkpoint(run / "checkpoints") is None and process.poll() is None:
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.05)
        time.sleep(0.5)  # somewhere in a later step or save
    finally:
        process.kill()
        process.wait()
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    resumed = Trainer(tiny_recipe(steps=100_000), run, resume=True, cpu=True)
    assert f"step_{resumed.step:07d}" == checkpoint.name
