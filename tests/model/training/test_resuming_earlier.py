"""A run that is resumed at an earlier step than its last or best one replaces those."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.recipes import tiny_recipe
from helpers.training import build_trainer

from maskformer import MaskFormer
from maskformer.config.schema import Config
from maskformer.errors import TrainingStoppedError
from maskformer.training.checkpoints.checksums import find_damage
from maskformer.training.checkpoints.contents import load_recipe, resolve_checkpoint
from maskformer.training.checkpoints.resuming import checkpoint_to_resume
from maskformer.weights.locate import BEST, CHECKPOINTS, LAST, find_checkpoint

RECIPE = tiny_recipe(steps=4, checkpoint_every=2, keep=2, patience=9)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 4 of this run is its last and its best one; it also holds step 2."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    build_trainer(RECIPE, run, cpu=True).fit()
    return run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))


def damage(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def resume_until(recipe: Config, run: Path, step: int) -> None:
    trainer = build_trainer(recipe, run, resume=True, cpu=True)
    advance = trainer.parts.reporter.advance

    def stop(finished: int) -> None:
        advance(finished)
        if finished == step:
            signal.raise_signal(signal.SIGTERM)

    trainer.parts.reporter.advance = stop  # type: ignore[method-assign]
    with pytest.raises(TrainingStoppedError, match=f"step {step}/"):
        trainer.fit()


def test_a_damaged_checkpoint_is_replaced(finished_run: Path, run: Path) -> None:
    step = run / CHECKPOINTS / "step_0000004"
    damage(step)
    resumed = build_trainer(RECIPE, run, resume=True, cpu=True)
    assert resumed.step == 2
    resumed.fit()
    assert find_damage(step) == ""
    assert resumed.parts.checkpointer.stale_evaluations == 0
    for link in (LAST, BEST):
        assert find_checkpoint(run / CHECKPOINTS, link) == step.resolve()
    weights, expected = (
        MaskFormer.from_pretrained(path).state_dict() for path in (run, finished_run)
    )
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


def test_a_damaged_checkpoint_is_not_the_best(run: Path) -> None:
    damage(run / CHECKPOINTS / BEST)
    resume_until(RECIPE, run, 3)
    assert resolve_checkpoint(run).name == "step_0000003"


def test_going_back_keeps_the_best_until_its_step(run: Path) -> None:
    last = run / CHECKPOINTS / LAST
    last.unlink()
    last.symlink_to("step_0000002")
    recipe = tiny_recipe(steps=6, lr=0.01)
    resume_until(recipe, run, 3)
    assert resolve_checkpoint(run).name == "step_0000004"
    resume_until(recipe, run, 4)
    assert find_checkpoint(run / CHECKPOINTS, BEST) is None  # the new step 4 was not evaluated
    assert load_recipe(resolve_checkpoint(run), []).train.lr == 0.01


def test_steps_with_more_digits_are_later(run: Path) -> None:
    folder = run / CHECKPOINTS
    step, last = folder / "step_0000004", folder / LAST
    for name in ("step_9999999", "step_10000000", "step_10000001"):
        shutil.copytree(step, folder / name)
    last.unlink()
    assert find_checkpoint(folder) == (folder / "step_10000001").resolve()
    damage(folder / "step_10000001")
    passed_over: list[str] = []
    assert checkpoint_to_resume(run, passed_over.append).name == "step_10000000"
    last.symlink_to("step_9999999")
    damage(folder / "step_10000000")
    passed_over.clear()
    assert checkpoint_to_resume(run, passed_over.append).name == "step_9999999"
    assert sorted("step_10000000" in text for text in passed_over) == [False, True]


def test_a_copy_with_a_longer_name_is_not_later(run: Path) -> None:
    folder = run / CHECKPOINTS
    for name in ("step_0000002_good", "step_0000003"):
        shutil.copytree(folder / "step_0000002", folder / name)
    (folder / LAST).unlink()
    assert find_checkpoint(folder) == (folder / "step_0000004").resolve()
    damage(folder / "step_0000004")
    assert checkpoint_to_resume(run).name == "step_0000003"
    damage(folder / "step_0000003")
    assert checkpoint_to_resume(run).name == "step_0000002"


def test_the_step_that_is_resumed_becomes_the_last(run: Path) -> None:
    """Otherwise it might be removed to make room, while the damaged one is kept."""
    folder = run / CHECKPOINTS
    damage(folder / LAST)
    build_trainer(RECIPE, run, resume=True, cpu=True).parts.checkpointer.prepare()
    assert find_checkpoint(folder) == (folder / "step_0000002").resolve()


def test_a_step_kept_elsewhere_does_not_become_the_last(run: Path, tmp_path: Path) -> None:
    """The link `last` can only name a folder beside it."""
    folder = run / CHECKPOINTS
    elsewhere = tmp_path / "kept"
    (folder / "step_0000002").rename(elsewhere)
    (folder / "step_0000002").symlink_to(elsewhere)
    damage(folder / LAST)
    resumed = build_trainer(RECIPE, run, resume=True, cpu=True)
    resumed.parts.checkpointer.prepare()
    assert resumed.step == 2
    assert find_checkpoint(folder) == (folder / "step_0000004").resolve()


def test_copies_of_checkpoints_are_kept(run: Path) -> None:
    folder = run / CHECKPOINTS
    copy = folder / "step_0000002_good"
    shutil.copytree(folder / "step_0000002", copy)
    (folder / LAST).unlink()
    (folder / LAST).symlink_to("step_0000002")
    build_trainer(
        tiny_recipe(steps=4, checkpoint_every=1, keep=1), run, resume=True, cpu=True
    ).fit()
    assert sorted(folder.glob("step_*")) == [copy, folder / "step_0000004"]
    build_trainer(RECIPE, run, overwrite=True, cpu=True).fit()
    assert find_damage(copy) == ""
