"""What a recipe says of the course of training: what learns, how long, and what is kept."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recipes import TINY, tiny_recipe
from helpers.training import build_trainer
from PIL import Image

from maskformer import MaskFormer
from maskformer.config.load import load_config, parse_config, to_yaml
from maskformer.data.image_files.reader import ImageReader
from maskformer.errors import CheckpointError, ConfigError, TrainingStoppedError
from maskformer.modeling.criterion import weights_of_classes
from maskformer.training.checkpoints.contents import load_recipe, resolve_checkpoint
from maskformer.training.trainer import Trainer
from maskformer.weights.locate import BEST, STATE, find_checkpoint
from maskformer.weights.safe_pickle.unpickle import read_pickle


def stop_after(trainer: Trainer, steps: int) -> None:
    """As a signal would."""
    train_step = trainer._train_step

    def step(*args: Any) -> None:
        train_step(*args)
        if trainer.step + 1 == steps:
            trainer.parts.signals.signals.stop = 15

    trainer._train_step = step  # type: ignore[method-assign]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return MaskFormer.from_pretrained(run / "checkpoints" / name).state_dict()


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.glob("checkpoints/step_*"))


def score(trainer: Trainer, scores: list[float]) -> None:
    """Lets the evaluations find these, one after the other."""
    found, evaluator = iter(scores), trainer.parts.evaluator

    def evaluate(model: Any) -> Any:
        evaluation = evaluator(model)
        evaluation.score = next(found)
        return evaluation

    trainer.parts.evaluator = evaluate  # type: ignore[assignment]


class TestFreeze:
    def test_frozen_parts_do_not_move_and_resume(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tiny_recipe(steps=4, freeze=["stem", "stage1"])
        trainer = build_trainer(recipe, tmp_path / "run", cpu=True)
        assert "frozen: stem, stage1 (2,672 of 332,746 parameters)" in capsys.readouterr().out
        before = {name: v.clone() for name, v in trainer.bare_model.state_dict().items()}
        stop_after(trainer, 2)
        with pytest.raises(TrainingStoppedError):
            trainer.fit()
        resumed = build_trainer(recipe, tmp_path / "run", resume=True, cpu=True)
        resumed.fit()
        moved = {n for n, v in resumed.bare_model.state_dict().items() if not v.equal(before[n])}
        frozen = ("backbone.body.conv_stem", "backbone.body.bn1", "backbone.body.blocks.0")
        assert not [name for name in moved if name.startswith((*frozen, "backbone.body.blocks.1"))]
        assert [name for name in moved if name.startswith("backbone.body.blocks.2")]
        build_trainer(recipe, tmp_path / "straight", cpu=True).fit()
        straight = weights(tmp_path / "straight")
        assert all(v.equal(straight[n]) for n, v in weights(tmp_path / "run").items())

    @pytest.mark.parametrize(
        ("changed", "why"),
        [([], "groups the parameters"), (["stage3"], "trained other parameters")],
    )
    def test_other_parts_cannot_be_resumed(
        self, tmp_path: Path, changed: list[str], why: str
    ) -> None:
        values = {**TINY, "model": {**TINY["model"], "backbone": {"name": "resnet18"}}}
        values["model"]["backbone"]["pretrained"] = False
        values["train"] = {**TINY["train"], "steps": 1, "freeze": "stage2"}
        build_trainer(parse_config(values), tmp_path / "run", cpu=True).fit()
        values["train"]["freeze"] = changed
        with pytest.raises(CheckpointError, match=rf"{why}.*train\.freeze changed"):
            build_trainer(parse_config(values), tmp_path / "run", resume=True, cpu=True)


class TestAverage:
    DECAY = 0.75

    def test_the_average_is_evaluated_saved_and_resumed_exactly(self, tmp_path: Path) -> None:
        recipe = tiny_recipe(steps=4, ema=self.DECAY)
        trainer = build_trainer(recipe, tmp_path / "whole", cpu=True)
        expected: dict[str, torch.Tensor] = {}
        evaluated: list[Any] = []
        update, evaluate = trainer._update, trainer.parts.evaluator

        def update_and_average(norm: torch.Tensor) -> None:
            update(norm)
            for name, value in trainer.bare_model.named_parameters():
                value = value.detach()
                average = expected.get(name, value)
                expected[name] = self.DECAY * average + (1 - self.DECAY) * value

        trainer._update = update_and_average  # type: ignore[method-assign]
        trainer.parts.evaluator = lambda model: (  # type: ignore[assignment]
            evaluated.append(model) or evaluate(model)
        )
        trainer.fit()
        assert evaluated == [trainer.parts.average.module]  # type: ignore[union-attr]
        saved = weights(tmp_path / "whole")
        for name, value in expected.items():
            torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-7)
        learnt = dict(trainer.bare_model.named_parameters())
        assert any(not saved[name].equal(learnt[name]) for name in expected)

        stopped = build_trainer(recipe, tmp_path / "stopped", cpu=True)
        stop_after(stopped, 2)
        with pytest.raises(TrainingStoppedError):
            stopped.fit()
        resumed = build_trainer(recipe, tmp_path / "stopped", resume=True, cpu=True)
        resumed.fit()
        assert all(v.equal(saved[n]) for n, v in weights(tmp_path / "stopped").items())
        assert all(p.equal(learnt[n]) for n, p in resumed.bare_model.named_parameters())

    def test_a_run_may_begin_or_cease_to_average(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        build_trainer(tiny_recipe(steps=1), run, cpu=True).fit()
        build_trainer(tiny_recipe(steps=3, ema=0.5), run, resume=True, cpu=True).fit()
        learnt = read_pickle(run / "checkpoints" / "last" / STATE)["weights"]
        assert any(not value.equal(learnt[n]) for n, value in weights(run).items())
        plain = build_trainer(tiny_recipe(steps=4), run, resume=True, cpu=True)
        assert all(v.equal(learnt[n]) for n, v in plain.bare_model.state_dict().items())

    def test_the_average_computes_with_its_own_weights_in_bf16(self, tmp_path: Path) -> None:
        """accelerate puts a method of the model in the place of its `forward`."""
        recipe = tiny_recipe(ema=0.5, precision="bf16")
        trainer = build_trainer(recipe, tmp_path / "run", cpu=True)
        image = torch.zeros(1, 3, 64, 64)
        model, average = trainer.bare_model.eval(), trainer.evaluated_model.eval()
        before = average(image)["class_logits"]
        with torch.no_grad():
            model.class_embed.bias += 1000
        assert average(image)["class_logits"].equal(before)
        assert not model(image)["class_logits"].equal(before)


class TestLength:
    def test_epochs_are_counted_in_steps(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        values = {**TINY, "train": {**TINY["train"], "epochs": 0.4, "batch_size": 2}}
        del values["train"]["steps"]
        trainer = build_trainer(parse_config(values), tmp_path / "run", cpu=True)
        assert "0.4 epochs of 12 images are 3 steps" in capsys.readouterr().out
        trainer.fit()
        assert trainer.step == 3
        assert "step 3/3  epoch 0.5  loss " in capsys.readouterr().out
        saved = load_recipe(resolve_checkpoint(tmp_path / "run"), [])
        assert (saved.train.steps, saved.train.epochs) == (3, None)
        resumed = build_trainer(parse_config(values), tmp_path / "run", resume=True, cpu=True)
        assert resumed.finished

    def test_either_steps_or_epochs(self) -> None:
        config = load_config("quickstart", ["train.epochs=3"])  # in the place of the base's steps
        assert config.train.epochs == 3
        assert parse_config(config.model_dump()) == config
        assert "\n  steps:" not in to_yaml(config)
        overrides = ["train.epochs=3", "train.steps=5"]
        with pytest.raises(ConfigError, match=r"train: steps and epochs are both given"):
            load_config("quickstart", overrides)

    def test_a_base_of_epochs_may_be_counted_in_steps(self, tmp_path: Path) -> None:
        (tmp_path / "base.yaml").write_text("data: {format: shapes}\ntrain: {epochs: 3}\n")
        (tmp_path / "child.yaml").write_text("base: base.yaml\ntrain: {steps: 7}\n")
        train = load_config(tmp_path / "child.yaml").train
        assert (train.steps, train.epochs) == (7, None)

    @pytest.mark.parametrize(
        ("given", "warned"),
        [
            ({}, True),
            ({"batch_size": 1}, True),
            ({"steps": 160_000}, False),
            ({"epochs": 9}, False),
        ],
    )
    def test_a_length_that_nobody_chose_is_warned_about(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        given: dict[str, int],
        warned: bool,
    ) -> None:
        train = {key: value for key, value in TINY["train"].items() if key != "steps"}
        config = parse_config({**TINY, "train": {**train, **given}})
        build_trainer(config, tmp_path / "run", cpu=True)
        epochs = f"{160_000 * config.train.batch_size / 12:,.0f}"
        text = f"train.steps is 160000 (the default), which is {epochs} epochs of 12 images; set"
        assert (text in capsys.readouterr().out) == warned

    @pytest.mark.parametrize(("warmup", "warned"), [(5, False), (6, True)])
    def test_a_warmup_without_an_end_is_warned_about(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], warmup: int, warned: bool
    ) -> None:
        build_trainer(tiny_recipe(warmup_steps=warmup), tmp_path / "run", cpu=True)
        text = "train.warmup_steps is 6, but the run has 6 steps"
        assert (text in capsys.readouterr().out) == warned


class TestPatience:
    def test_training_stops_when_nothing_gets_better(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        recipe = tiny_recipe(steps=20, evaluate_every=1, patience=2)
        trainer = build_trainer(recipe, run, cpu=True)
        score(trainer, [0.1, 0.3, 0.2, 0.3])
        assert trainer.fit()["step"] == trainer.step == 4
        said = capsys.readouterr().out
        assert "stopped early at step 4/20: no better score in 2 evaluations" in said
        assert json.loads((run / "metrics.json").read_text())["step"] == 4
        assert steps_of(run) == [2, 4]
        # It is over until it is given more patience.
        again = build_trainer(recipe, run, resume=True, cpu=True)
        assert again.fit()["step"] == 4
        assert "to train further, raise train.patience" in capsys.readouterr().out
        more = tiny_recipe(steps=20, evaluate_every=1, patience=3)
        longer = build_trainer(more, run, resume=True, cpu=True)
        score(longer, [0.3])
        assert longer.fit()["step"] == 5

    @pytest.mark.parametrize("during_evaluation", [True, False])
    def test_patience_is_counted_over_a_stop(self, tmp_path: Path, during_evaluation: bool) -> None:
        recipe = tiny_recipe(steps=20, evaluate_every=2, patience=2)
        trainer = build_trainer(recipe, tmp_path / "run", cpu=True)
        score(trainer, [0.3, 0.2])
        # After the evaluation of step 4, or before it.
        stop_after(trainer, 4 if during_evaluation else 5)
        with pytest.raises(TrainingStoppedError):
            trainer.fit()
        resumed = build_trainer(recipe, tmp_path / "run", resume=True, cpu=True)
        assert resumed.parts.evaluation_due
        score(resumed, [0.2, 0.1] if during_evaluation else [0.1])
        assert resumed.fit()["step"] == 6

    def test_without_patience_a_run_goes_to_its_end(self, tmp_path: Path) -> None:
        trainer = build_trainer(tiny_recipe(steps=4, evaluate_every=1), tmp_path / "run", cpu=True)
        score(trainer, [0.3, 0.2, 0.1, math.nan])
        assert trainer.fit()["step"] == 4


class TestCheckpoints:
    def test_the_newest_are_kept_besides_the_best(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        recipe = tiny_recipe(steps=6, evaluate_every=1, keep=3)
        trainer = build_trainer(recipe, run, cpu=True)
        score(trainer, [0.9, *[0.1] * 5])
        trainer.fit()
        assert steps_of(run) == [1, 4, 5, 6]
        for step in (run / "checkpoints").glob("step_*"):
            MaskFormer.from_pretrained(step)

    def test_a_damaged_newest_one_falls_back_to_one_that_was_kept(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        recipe = tiny_recipe(steps=5, evaluate_every=1, keep=3)
        trainer = build_trainer(recipe, run, cpu=True)
        score(trainer, [0.9, *[0.1] * 4])
        trainer.fit()
        (run / "checkpoints" / "step_0000005" / "model.safetensors").write_bytes(b"gone")
        resumed = build_trainer(recipe, run, resume=True, cpu=True)
        assert resumed.step == 4
        resumed.fit()
        assert steps_of(run) == [1, 3, 4, 5]

    def test_the_best_in_another_metric(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        recipe = tiny_recipe(steps=2, evaluate_every=1, best_metric="pacc")
        trainer = build_trainer(recipe, run, cpu=True)
        figures: list[dict[str, float]] = []
        add = trainer.parts.reporter.add_evaluation
        trainer.parts.reporter.add_evaluation = lambda step, evaluation: (  # type: ignore[method-assign]
            figures.append(evaluation.metrics),
            add(step, evaluation),
        )[1]
        trainer.fit()
        best = find_checkpoint(run / "checkpoints", BEST)
        assert best is not None
        noted = json.loads((best / "score.json").read_text())
        assert noted == {"score": max(f["pacc"] for f in figures), "metric": "pacc"}
        # A best one by another measure is no rival.
        resumed = build_trainer(tiny_recipe(steps=3, best_metric="sq"), run, resume=True, cpu=True)
        score(resumed, [1e-9])
        resumed.fit()
        assert find_checkpoint(run / "checkpoints", BEST) == resolve_checkpoint(run)
        assert resolve_checkpoint(run).name == "step_0000003"

    @pytest.mark.parametrize(
        ("metric", "off"), [("macc", "semantic"), ("pq", "panoptic"), ("sq_things", "panoptic")]
    )
    def test_a_metric_that_is_not_measured_is_refused(self, metric: str, off: str) -> None:
        on = {"semantic": "panoptic", "panoptic": "semantic"}[off]
        overrides = [f"eval.{off}=false", f"eval.{on}=true", f"train.best_metric={metric}"]
        with pytest.raises(ConfigError, match=rf"{metric}, which is not measured: eval\.{off} is"):
            load_config("quickstart", overrides)

    def test_a_metric_of_classes_that_are_not_there_is_refused(self, tmp_path: Path) -> None:
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / "a.jpg")
        Image.new("L", (64, 64)).save(tmp_path / "labels" / "a.png")
        split = {"images": "images", "labels": "labels"}
        data = {"format": "folder", "root": str(tmp_path), "train": split, "val": split}
        values = {**TINY, "data": {**data, "classes": ["a", "b"]}}
        values["train"] = {**TINY["train"], "best_metric": "pq_things"}
        with pytest.raises(ConfigError, match="but none of the data set's classes are things"):
            build_trainer(parse_config(values), tmp_path / "run", cpu=True)


class TestClassWeights:
    @pytest.mark.parametrize("architecture", ["maskformer", "per_pixel"])
    def test_they_change_what_is_learnt(self, tmp_path: Path, architecture: str) -> None:
        losses = []
        for given in (None, {"sky": 9.0, "disc": 0.0}, [1.0] * 5 + [9.0] + [1.0] * 3):
            values = {**TINY, "model": {**TINY["model"], "architecture": architecture}}
            values["criterion"] = {"class_weights": given}
            trainer = build_trainer(parse_config(values), tmp_path / str(len(losses)), cpu=True)
            [batch] = trainer._wait_for_batches(iter(trainer.parts.data.loader(0)), _Window())
            trainer.parts.model.eval()
            with torch.no_grad():
                outputs = trainer.parts.model(batch.pixel_values)
                losses.append(next(iter(trainer.parts.criterion(outputs, batch.targets).values())))
        assert len({float(loss) for loss in losses}) == 3

    def test_weights_that_do_not_fit(self, tmp_path: Path) -> None:
        for given, message in (
            ({"sky": 2.0, "skyy": 2.0}, r"no class is named 'skyy'; did you mean 'sky'\?"),
            ([1.0, 2.0], r"one weight per class, got 2 for 9 classes"),
        ):
            config = parse_config({**TINY, "criterion": {"class_weights": given}})
            with pytest.raises(ConfigError, match=rf"criterion\.class_weights.*{message}"):
                build_trainer(config, tmp_path / "run", cpu=True)

    def test_names_that_hold_line_ends(self) -> None:
        with pytest.raises(ConfigError, match=r"named 'zzz'; classes: sky, cat\\x0aerror: dog$"):
            weights_of_classes({"zzz": 2.0}, ("sky", "cat\nerror: dog"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("{a: -1}", r"class_weights\.a: .*greater than or equal to 0, got -1$"),
            ("3", r"class_weights: .*valid list, got 3$"),
        ],
    )
    def test_one_error_each(self, given: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_config("quickstart", [f"criterion.class_weights={given}"])


class _Window:
    waited = 0.0


def test_batches_are_of_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a recipe does not want it; where a batch is one image, no file is read for it."""
    for k in range(4):
        for kind, mode in (("images", "RGB"), ("labels", "L")):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new(mode, (40, 32) if k % 2 else (32, 40)).save(tmp_path / kind / f"{k}.png")
    split = {"images": "images", "labels": "labels"}
    files = {"format": "folder", "root": str(tmp_path), "train": split, "val": split}
    data = {key: TINY["data"][key] for key in ("augmentation", "test_short_side")}
    config = parse_config({**TINY, "data": {**data, **files, "classes": ["a"]}})
    batches = build_trainer(config, tmp_path / "run", cpu=True).parts.data

    def kinds(**train: Any) -> set[int]:
        options = {"train": config.train.model_copy(update=train)}
        batches.config = config.model_copy(update=options)
        names = [batch.names for batch in itertools.islice(batches.loader(0), 16)]
        return {len({int(name) % 2 for name in each}) for each in names}

    assert kinds() == {1}
    monkeypatch.setattr(ImageReader, "read_size", None)
    assert kinds(group_by_aspect=False) == {1, 2}
    assert kinds(accumulate=2) == {1}
