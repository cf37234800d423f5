from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.process_groups import forks
from helpers.recipes import TINY, tiny_recipe, write_recipe
from helpers.training import build_trainer, scalars

import mfkernels
from maskformer import MaskFormer
from maskformer.cli import main
from maskformer.config.load import parse_config
from maskformer.data import Dataset, Sample
from maskformer.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    TrainingDivergedError,
    TrainingStoppedError,
)
from maskformer.training.checkpoints.contents import resolve_checkpoint
from maskformer.training.checkpoints.writing import mark_best
from maskformer.training.kernel_errors import kernel_errors
from maskformer.training.log_window import LogWindow
from maskformer.training.trainer import Trainer
from maskformer.weights.locate import BEST, STATE, find_checkpoint
from mfkernels.backend import why_not_native


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = parse_config({**TINY, "eval": {**TINY["eval"], "pictures": 2}})
    build_trainer(recipe, run, cpu=True).fit()
    return run


def test_both_backends_learn_the_same(tmp_path: Path) -> None:
    """Rounding differs, and grows from step to step; the curves must stay together all the same."""
    if (reason := why_not_native("mask_loss", "cpu")) is not None:
        pytest.skip(reason)
    curves: dict[str, dict[str, list[float]]] = {}
    for backend in ("native", "reference"):
        run = tmp_path / backend
        recipe = tiny_recipe(steps=40, lr=3e-4, evaluate_every=100)
        build_trainer(recipe, run, backend=backend, cpu=True).fit()
        curves[backend] = {
            name: list(scalars(run, f"train/{name}").values())
            for name in ("loss", "loss_ce", "loss_mask", "loss_dice", "loss_mask_0", "bad_costs")
        }
    native, reference = curves["native"], curves["reference"]
    assert len(native["loss"]) == 40
    assert sum(native["loss"][-5:]) < 0.9 * sum(native["loss"][:5])
    assert native["bad_costs"] == reference["bad_costs"] == [0] * 40
    for name in ("loss", "loss_ce", "loss_mask", "loss_dice", "loss_mask_0"):
        assert native[name][:3] == pytest.approx(reference[name][:3], rel=1e-4)
        assert native[name] == pytest.approx(reference[name], rel=0.02)


def test_kernels_are_verified_on_the_way_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (reason := why_not_native("mask_loss", "cpu")) is not None:
        pytest.skip(reason)
    changes = {"steps": 4, "log_every": 1, "evaluate_every": 100}
    plain = build_trainer(tiny_recipe(**changes), tmp_path / "plain", cpu=True)
    plain.fit()
    changes["verify_kernels"] = 2
    run = tmp_path / "verified"
    trainer = build_trainer(tiny_recipe(**changes), run, cpu=True)
    trainer.fit()
    assert scalars(run, "train/loss") == scalars(tmp_path / "plain", "train/loss")
    for name in ("loss", "gradient"):
        errors = scalars(run, f"train/kernel_{name}_error")
        assert list(errors) == [1, 3], "of the first and the third step"
        assert max(errors.values()) < 1e-4
    criterion, operator = trainer.parts.criterion, torch.ops.mfkernels.mask_loss
    assert isinstance(criterion, mfkernels.MaskFormerCriterion)
    monkeypatch.setattr(
        torch.ops.mfkernels, "mask_loss", lambda *given: [1.01 * x for x in operator(*given)]
    )
    batch = next(iter(trainer.parts.data.loader(0)))
    counted = criterion.bad_costs.clone()
    found = kernel_errors(criterion, trainer.bare_model(batch.pixel_values), batch.targets)
    assert found["kernel_loss_error"] > 1e-3
    assert torch.equal(criterion.bad_costs, counted)


def test_kernels_are_compiled_before_the_first_step_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    recipe = tiny_recipe(steps=3, log_every=1, evaluate_every=100)
    build_trainer(recipe, tmp_path / "plain", cpu=True).fit()
    calls: list[tuple[int, dict[str, Any]]] = []
    warmup = mfkernels.warmup

    def noted(*arguments: Any, **options: Any) -> None:
        calls.append((trainer.step, options))
        warmup(*arguments, **options)

    monkeypatch.setattr("maskformer.training.trainer.COMPILED_ON", ("cpu",))
    monkeypatch.setattr(mfkernels, "warmup", noted)
    trainer = build_trainer(recipe, tmp_path / "warm", cpu=True)
    trainer.fit()
    assert calls == [(0, {"most_segments": 100, "overlap": False})]
    assert scalars(tmp_path / "warm", "train/loss") == scalars(tmp_path / "plain", "train/loss")


def test_a_run_leaves_figures_pictures_and_a_checkpoint_to_use(finished_run: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert {"miou", "pq", "step", "train_images_per_second", "peak_memory_mb"} <= metrics.keys()
    assert metrics["step"] == 6
    assert len(list((finished_run / "predictions").glob("*.png"))) == 2
    model = MaskFormer.from_pretrained(resolve_checkpoint(finished_run))
    assert model.num_classes == 9
    assert all(math.isfinite(v) for v in scalars(finished_run, "train/loss_mask_0").values())


def test_a_run_is_not_overwritten_by_accident(finished_run: Path) -> None:
    with pytest.raises(FileExistsError, match=r"--resume.*--overwrite"):
        build_trainer(tiny_recipe(), finished_run, cpu=True)


def test_overwriting_waits_until_the_new_run_can_start(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    (run / "mine.txt").write_text("keep")
    wrong = parse_config({**TINY, "model": {**TINY["model"], "num_classes": 4}})
    with pytest.raises(ValueError, match=r"model\.num_classes"):
        build_trainer(wrong, run, overwrite=True, cpu=True)
    with pytest.raises(ValueError, match="batch_size"):
        build_trainer(tiny_recipe(accumulate=3), run, overwrite=True, cpu=True).fit()
    assert find_checkpoint(run / "checkpoints") is not None
    # Its own weights may start the run that replaces it.
    trainer = build_trainer(tiny_recipe(steps=1), run, overwrite=True, weights=run, cpu=True)
    trainer.fit()
    assert (run / "mine.txt").read_text() == "keep"
    assert {p.name for p in (run / "checkpoints").glob("step_*")} == {"step_0000001"}


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_an_output_that_cannot_be_a_folder_is_refused_at_once(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file"):
        build_trainer(tiny_recipe(), tmp_path / "file" / below, cpu=True)


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
    trainer = build_trainer(tiny_recipe(), run, cpu=True)
    stop_after(trainer, 3)
    with pytest.raises(TrainingStoppedError, match=rf"step 3/6.*--resume --output {run}") as stop:
        trainer.fit()
    assert stop.value.exit_code == 128 + signal.SIGTERM
    torch.manual_seed(123)  # the state of the generators comes from the checkpoint
    resumed = build_trainer(tiny_recipe(), run, resume=True, cpu=True)
    assert resumed.step == 3
    resumed.fit()
    assert scalars(run, "train/loss") == scalars(finished_run, "train/loss")
    weights = [
        MaskFormer.from_pretrained(resolve_checkpoint(path)).state_dict()
        for path in (run, finished_run)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_resuming_a_finished_run_keeps_its_figures(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    figures = build_trainer(tiny_recipe(), run, resume=True, cpu=True).fit()
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    metrics = json.loads((run / "metrics.json").read_text())
    assert figures == {name: value for name, value in metrics.items() if name != "per_class"}
    assert (
        "already finished at step 6: its metrics are kept; to train further, raise train.steps: "
        f"maskformer train --resume --output {run} train.steps=12" in capsys.readouterr().out
    )


def test_a_finished_run_that_lost_its_figures_is_evaluated(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    before = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    build_trainer(tiny_recipe(), run, resume=True, cpu=True).fit()
    after = json.loads((run / "metrics.json").read_text())
    assert after["train_images_per_second"] is None
    assert {k: after[k] for k in ("step", "miou", "pq")} == {
        k: before[k] for k in ("step", "miou", "pq")
    }


def test_a_changed_recipe_counts_after_resuming(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    recipe = tiny_recipe(steps=12, lr=0.004, weight_decay=0.3, batch_size=4)
    trainer = build_trainer(recipe, run, resume=True, cpu=True)
    groups = trainer.parts.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    rates = {round(group["lr"] / 0.5**0.9, 9) for group in groups}
    assert rates == {0.004, 0.0004}
    assert trainer.parts.optimizer.state_dict()["state"][0]["step"] == 6
    trainer.fit()
    assert trainer.step == 12
    with pytest.raises(CheckpointError, match=r"groups the parameters differently"):
        build_trainer(tiny_recipe(weight_decay=0.0), run, resume=True, cpu=True)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_checkpoint_is_named(finished_run: Path, tmp_path: Path, damage: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    state = run / "checkpoints" / "last" / STATE
    state.write_bytes(state.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"cannot resume from .*step_0000006: "):
        build_trainer(tiny_recipe(), run, resume=True, cpu=True)


def test_a_copy_without_links_resumes(finished_run: Path, tmp_path: Path) -> None:
    for links in ("lost", "followed"):
        run = tmp_path / links
        shutil.copytree(finished_run, run)  # links become folders
        if links == "lost":
            shutil.rmtree(run / "checkpoints" / "last")
            shutil.rmtree(run / "checkpoints" / "best")
        trainer = build_trainer(tiny_recipe(steps=7), run, resume=True, cpu=True)
        assert trainer.step == 6
        trainer.fit()
        last = run / "checkpoints" / "last"
        assert last.is_symlink()
        assert last.resolve().name == "step_0000007"


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "run" / "checkpoints" / ".step_0000003.partial"
    leftover.mkdir(parents=True)
    build_trainer(tiny_recipe(steps=1), tmp_path / "run", cpu=True).fit()
    assert not leftover.exists()


def test_best_is_the_step_with_the_highest_score(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    trainer = build_trainer(tiny_recipe(steps=4, evaluate_every=1), tmp_path / "run", cpu=True)
    scores = iter([0.3, 0.2, math.nan, 0.25])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "maskformer.training.checkpointer.mark_best",
            lambda place, step, _, **options: mark_best(place, step, next(scores), **options),
        )
        trainer.fit()
    best = find_checkpoint(folder, BEST)
    assert best is not None
    assert best.name == "step_0000001"
    assert sorted(p.name for p in folder.glob("step_*")) == ["step_0000001", "step_0000004"]
    # A resumed run still knows the best score.
    assert not mark_best(folder, 4, 0.29)
    assert mark_best(folder, 4, 0.31)
    assert not mark_best(folder, 3, 0.9)  # never saved, or removed
    assert [p.name for p in folder.glob("step_*")] == ["step_0000004"]


@pytest.mark.parametrize("steps", [2, 4])
def test_a_signal_during_an_evaluation_ends_it(tmp_path: Path, steps: int) -> None:
    """At the end of training and in the middle of it."""
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(steps=steps, evaluate_every=2), run, cpu=True)
    stop = trainer.parts.evaluator._stop_if_asked

    def signalled() -> None:
        signal.raise_signal(signal.SIGTERM)
        stop()

    trainer.parts.evaluator._stop_if_asked = signalled  # type: ignore[method-assign]
    with pytest.raises(TrainingStoppedError, match=rf"step 2/{steps}.*--resume"):
        trainer.fit()
    resumed = build_trainer(tiny_recipe(steps=steps), run, resume=True, cpu=True)
    assert resumed.step == 2
    assert resumed.fit()["step"] == steps


class Spoilt:
    """A data set whose sixth sample read is the first that cannot be used."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.info = dataset.info
        self.read = 0

    @property
    def num_images(self) -> int:
        return self.dataset.num_images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        if self.read >= 6:
            raise DatasetError("a broken image")
        return self.dataset[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_image_costs_no_step(tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    trainer = build_trainer(tiny_recipe(workers=workers), run, cpu=True)
    trainer.parts.data.train = Spoilt(trainer.parts.data.train)
    with pytest.raises(DatasetError, match=r"(?s)a broken image.Step 2 is saved.*--resume"):
        trainer.fit()
    assert build_trainer(tiny_recipe(), run, resume=True, cpu=True).step == 2


def test_the_signal_handlers_of_the_caller_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = build_trainer(tiny_recipe(), tmp_path / "run", cpu=True)
    stop_after(trainer, 1, signal.SIGINT)
    with pytest.raises(TrainingStoppedError) as stop:
        trainer.fit()
    assert stop.value.exit_code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_trains_in_a_thread(finished_run: Path, tmp_path: Path, workers: int) -> None:
    """Signals come to the main thread, which keeps its handlers."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    trainer = build_trainer(tiny_recipe(steps=2, workers=workers), run, overwrite=True, cpu=True)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(trainer.fit).result()["step"] == 2


def test_the_old_run_stays_until_signals_are_noted(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    trainer = build_trainer(tiny_recipe(), run, overwrite=True, cpu=True)

    def refuse(*_: object) -> None:
        raise ValueError("no signals here")

    monkeypatch.setattr(signal, "signal", refuse)
    with pytest.raises(ValueError, match="no signals here"):
        trainer.fit()
    assert find_checkpoint(run / "checkpoints") is not None


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        build_trainer(tiny_recipe(), tmp_path, resume=True, cpu=True)


def test_accumulation_steps_once_per_batch(tmp_path: Path) -> None:
    trainer = build_trainer(tiny_recipe(accumulate=2, steps=2), tmp_path / "run", cpu=True)
    trainer.fit()
    assert trainer.step == 2
    state = trainer.parts.optimizer.state_dict()["state"]
    assert {int(entry["step"]) for entry in state.values()} == {2}


def test_a_batch_that_cannot_be_divided_is_refused_before_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = r"train\.batch_size is 2, expected a multiple of 3: processes \(1\) times train\.acc"
    with pytest.raises(ConfigError, match=said):
        build_trainer(tiny_recipe(accumulate=3), tmp_path / "run", cpu=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_model_learns_the_sizes_of_images(tmp_path: Path, mask_padding: bool) -> None:
    """Where their padding is to be left out."""
    recipe = tiny_recipe(steps=1)
    values = recipe.model_dump(mode="json")
    values["model"]["decoder"]["mask_padding"] = mask_padding
    values["data"]["augmentation"] |= {"short_sides": [40], "pad_to_crop": False}
    trainer = build_trainer(parse_config(values), tmp_path / "run", cpu=True)
    seen: list[Any] = []
    trainer.parts.model.register_forward_pre_hook(
        lambda _, args, options: seen.append((args[0].shape[2:], options)), with_kwargs=True
    )
    batches = iter(trainer.parts.data.loader(0))
    trainer._train_step([next(batches)], LogWindow(trainer.parts.accelerator))
    sizes = {"image_sizes": ((40, 40), (40, 40))} if mask_padding else {}
    assert seen == [((64, 64), sizes)]


def test_the_per_pixel_baselines_train(tmp_path: Path) -> None:
    for architecture in ("per_pixel", "per_pixel_plus"):
        values = {**TINY, "model": {**TINY["model"], "architecture": architecture}}
        values["train"] = {**TINY["train"], "steps": 2}
        metrics = build_trainer(parse_config(values), tmp_path / architecture, cpu=True).fit()
        assert math.isfinite(metrics["miou"])
        assert math.isfinite(metrics["pq"])


def test_bf16_trains(tmp_path: Path) -> None:
    trainer = build_trainer(tiny_recipe(precision="bf16", steps=2), tmp_path / "run", cpu=True)
    trainer.fit()
    assert all(math.isfinite(v) for v in scalars(tmp_path / "run", "train/loss").values())


def test_runs_of_one_process_may_differ_in_precision(tmp_path: Path) -> None:
    for precision in ("bf16", "fp32", "bf16"):
        recipe = tiny_recipe(steps=1, precision=precision)
        trainer = build_trainer(recipe, tmp_path / "run", overwrite=True, cpu=True)
        assert trainer.fit()["step"] == 1
        used = {"bf16": "bf16", "fp32": "no"}[precision]
        assert trainer.parts.accelerator.mixed_precision == used


def test_weights_start_a_new_run(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = build_trainer(tiny_recipe(), tmp_path / "run", weights=finished_run, cpu=True)
    count = sum(parameter.numel() for parameter in trainer.bare_model.parameters())
    said = f"training on 12 images, validating on 4, 9 classes, {count:,} parameters; the run is "
    assert f"{said}in {tmp_path / 'run'}\n" in capsys.readouterr().out
    expected = MaskFormer.from_pretrained(resolve_checkpoint(finished_run)).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trainer.bare_model.state_dict().items())
    assert trainer.step == 0


def test_weights_of_other_classes_start_with_a_new_head(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="class_embed"):
        other = MaskFormer.from_pretrained(
            resolve_checkpoint(finished_run), num_classes=3, ignore_mismatched_sizes=True
        )
    other.save_pretrained(tmp_path / "other")
    trainer = build_trainer(tiny_recipe(), tmp_path / "run", weights=tmp_path / "other", cpu=True)
    assert "class head is new (3 -> 9 classes); all else comes from" in capsys.readouterr().out
    expected = other.state_dict()
    same = {k: torch.equal(v, expected[k]) for k, v in trainer.bare_model.state_dict().items()}
    assert [name for name, equal in same.items() if not equal] == [
        "class_embed.weight",
        "class_embed.bias",
    ]


def test_a_wrong_class_count_is_refused(tmp_path: Path) -> None:
    values = {**TINY, "model": {**TINY["model"], "num_classes": 4}}
    with pytest.raises(ValueError, match=r"model\.num_classes is 4, .* 9 classes"):
        build_trainer(parse_config(values), tmp_path / "run", cpu=True)


def poison_losses(trainer: Trainer, bad: Iterator[bool]) -> None:
    total = trainer.parts.criterion.total

    def poisoned(losses: dict[str, torch.Tensor]) -> torch.Tensor:
        return total(losses) * (math.nan if next(bad) else 1.0)

    trainer.parts.criterion.total = poisoned  # type: ignore[method-assign]


def test_a_bad_step_is_skipped_and_counted(tmp_path: Path) -> None:
    trainer = build_trainer(tiny_recipe(log_every=6), tmp_path / "run", cpu=True)
    poison_losses(trainer, iter([False, True, False, False, True, False]))
    trainer.fit()
    assert trainer.skipped.item() == 2
    assert all(torch.isfinite(p).all() for p in trainer.bare_model.parameters())
    assert scalars(tmp_path / "run", "train/skipped_steps") == {6: 2.0}


@pytest.mark.parametrize(
    ("log_every", "steps", "said"),
    [
        (1, 30, "10 steps before step 11"),
        (4, 30, "11 .* step 12"),
        (50, 4, "4 steps before step 4"),
    ],
)
def test_a_run_that_diverged_ends_with_advice(
    tmp_path: Path, log_every: int, steps: int, said: str
) -> None:
    """However often it tells its figures."""
    recipe = tiny_recipe(log_every=log_every, steps=steps)
    trainer = build_trainer(recipe, tmp_path / "run", cpu=True)
    poison_losses(trainer, (steps < 10 or step > 0 for step in count()))
    with pytest.raises(TrainingDivergedError, match=rf"{said}.*train\.lr"):
        trainer.fit()


def test_bad_steps_now_and_then_end_no_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(log_every=2, steps=14)
    trainer = build_trainer(recipe, tmp_path / "run", cpu=True)
    poison_losses(trainer, (step != 6 for step in count()))
    assert trainer.fit()["step"] == 14
    assert trainer.skipped.item() == 13


def limit_file_size() -> None:
    """What a full disk looks like to the process that writes: the write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def command(folder: Path, arguments: list[str], prepare: Callable[[], None] | None) -> None:
    """The command line in a process of its own; what it says goes to `out` and `err`."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.argv = ["maskformer", *arguments]
    if prepare is not None:
        prepare()
    main()


def start_training(
    folder: Path, *arguments: str, prepare: Callable[[], None] | None = None
) -> ForkServerProcess:
    """By the recipe and into the run of a folder."""
    paths = ("--config", str(folder / "tiny.yaml"), "--output", str(folder / "run"))
    words = ["train", "--cpu", *paths, *arguments]
    process = forks().Process(target=command, args=(folder, words, prepare))
    process.start()
    return process


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    run = tmp_path / "run"
    first = start_training(tmp_path, "train.steps=2")
    first.join(300)
    assert first.exitcode == 0, (tmp_path / "err").read_text()
    kept = find_checkpoint(run / "checkpoints")
    changes = ("train.steps=6", "train.checkpoint_every=3")
    second = start_training(tmp_path, "--resume", *changes, prepare=limit_file_size)
    second.join(300)
    out, err = ((tmp_path / name).read_text() for name in ("out", "err"))
    assert second.exitcode == 1, out + err
    assert "Training continues" in out  # at step 3
    assert f"The last complete checkpoint is {kept}" in err  # at the end
    assert "Traceback" not in err
    assert find_checkpoint(run / "checkpoints") == kept
    assert [p.name for p in (run / "checkpoints").iterdir() if "partial" in p.name] == []
    MaskFormer.from_pretrained(resolve_checkpoint(run))


def test_a_killed_process_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = {**TINY, "train": {**TINY["train"], "steps": 100_000, "checkpoint_every": 1}}
    write_recipe(tmp_path, values)
    process = start_training(tmp_path)
    try:
        deadline = time.monotonic() + 120
        while find_checkpoint(run / "checkpoints") is None and process.is_alive():
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.05)
        time.sleep(0.5)  # somewhere in a later step or save
    finally:
        process.kill()
        process.join()
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    resumed = build_trainer(tiny_recipe(steps=100_000), run, resume=True, cpu=True)
    assert f"step_{resumed.step:07d}" == checkpoint.name
