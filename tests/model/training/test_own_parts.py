"""A program that builds the parts of training itself and uses the loop."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers.recipes import tiny_recipe
from torch import nn

from maskformer.data import Dataset, DatasetInfo, Sample
from maskformer.data.palette import palette
from maskformer.modeling.base import build_model
from maskformer.modeling.criterion import build_criterion
from maskformer.output.console import Progress
from maskformer.system.signals import Signals
from maskformer.training.build import build_accelerator
from maskformer.training.checkpointer import Checkpointer
from maskformer.training.checkpoints.contents import load_recipe, resolve_checkpoint
from maskformer.training.data import TrainingData
from maskformer.training.evaluator import Evaluator
from maskformer.training.reporter import Reporter
from maskformer.training.signal_agreement import SignalAgreement
from maskformer.training.trainer import Trainer, TrainingParts


class Halves:
    """Images that are dark on the left and bright on the right, a class each."""

    info = DatasetInfo(("dark", "bright"), frozenset(), palette(2), (0, 1))
    num_images = 4

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        image[..., 32:] = 200 + index
        segments = torch.zeros(64, 64, dtype=torch.int32)
        segments[:, 32:] = 1
        labels = torch.tensor([0, 1])
        return Sample(image, segments, labels, torch.zeros(2, dtype=torch.bool), f"{index}")


def own_parts(output: Path, steps: int) -> TrainingParts:
    """A data set, an optimiser and a schedule that no recipe names."""
    recipe = tiny_recipe(steps=steps)
    config = recipe.model_copy(update={"model": recipe.model.model_copy(update={"num_classes": 2})})
    accelerator = build_accelerator(config, cpu=True)
    progress, signals = Progress(), Signals()
    dataset: Dataset = Halves()
    data = TrainingData(dataset, dataset, config, accelerator, progress)
    model, optimizer = accelerator.prepare(
        bare := build_model(config.model), torch.optim.SGD(bare.parameters(), lr=0.5)
    )
    return TrainingParts(
        train=config.train,
        accelerator=accelerator,
        data=data,
        model=model,
        criterion=build_criterion(config),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer.optimizer, 0.5),
        signals=SignalAgreement(signals, accelerator),
        checkpointer=Checkpointer(
            output, config, data.info, accelerator, model, optimizer, signals, progress
        ),
        evaluator=Evaluator(data, config, accelerator, signals, progress),
        reporter=Reporter(output, steps, accelerator, progress),
    )


def test_the_loop_runs_over_parts_of_another_program(tmp_path: Path) -> None:
    parts = own_parts(tmp_path / "run", steps=3)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    trainer = Trainer(parts)
    metrics = trainer.fit()
    assert trainer.step == metrics["step"] == 3
    assert parts.scheduler.get_last_lr() == [0.5 * 0.5**3]
    assert isinstance(trainer.bare_model, nn.Module)
    assert any(not value.equal(before[name]) for name, value in parts.model.state_dict().items())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 3
    saved = resolve_checkpoint(tmp_path / "run")
    assert load_recipe(saved, []).model.num_classes == 2
