"""`train.shard`: what two processes learn that divide the model, and what they leave to others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from helpers.process_groups import free_port, join_processes, run_two
from helpers.recipes import TINY
from helpers.training import build_trainer, record_steps
from torch.distributed.tensor import DTensor

from maskformer import MaskFormer
from maskformer.config.load import load_config, parse_config
from maskformer.config.schema import Config
from maskformer.errors import ConfigError
from maskformer.training.trainer import Trainer
from maskformer.weights.locate import STATE
from maskformer.weights.safe_pickle.unpickle import read_pickle

SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "options": {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2]},
    "pretrained": False,
}
MODEL = {**TINY["model"], "decoder": {**TINY["model"]["decoder"], "dropout": 0.0}}
ENCODER = {**TINY["model"]["pixel_decoder"], "encoder_layers": 1}
FIGURES = ("grad_norm", "loss", "loss_ce", "loss_mask", "loss_dice")
Steps = list[dict[str, float]]


def recipe(model: dict[str, Any] | None = None, **train: Any) -> Config:
    """Frozen parts, BatchNorm that learns, gradients that are clipped, and a rate that does not
    know the length of the run; processes evaluate different numbers of batches.

    The first steps of AdamW are signs of gradients: with this seed none is so near zero that
    rounding turns it.
    """
    values = {**TINY, "model": {**MODEL, **(model or {})}}
    values["train"] = {**TINY["train"], "steps": 4, "batch_size": 4, "accumulate": 2,
                       "clip_norm": 0.01, "freeze": "stem", "schedule": "step",
                       "memory_format": "contiguous", "seed": 1, "trackers": [],
                       **train}  # fmt: skip
    values["data"] = {**TINY["data"], "val_images": 5}
    values["eval"] = {"batch_size": 1, "pictures": 0}
    return parse_config(values)


def swin(**train: Any) -> Config:
    """Two images a pass: of one, bfloat16 kernels are chosen by strides that mean nothing."""
    train = {"steps": 2, "batch_size": 8, "precision": "bf16", **train}
    return recipe({"backbone": SWIN, "pixel_decoder": ENCODER}, **train)


def check_divided(trainer: Trainer) -> None:
    """Each process holds about half of all parameters and moments, and the memory of no more."""
    parts = trainer.parts
    states = parts.optimizer.optimizer.state
    moments = [states[p][name] for p in states for name in ("exp_avg", "exp_avg_sq")]
    for tensors in ([*parts.model.parameters()], moments):
        assert tensors
        assert all(isinstance(tensor, DTensor) for tensor in tensors)
        held = [tensor.to_local() for tensor in tensors]  # type: ignore[attr-defined]
        total = sum(tensor.numel() for tensor in tensors)
        assert 0.45 < sum(tensor.numel() for tensor in held) / total < 0.55
        assert sum(t.untyped_storage().nbytes() for t in held) < 0.6 * 4 * total


def worker(rank: int, port: int, folder: Path) -> None:
    join_processes(rank, 2, port)

    def train(config: Config, run: str, **options: Any) -> Trainer:
        trainer = build_trainer(config, folder / run, cpu=True, **options)
        torch.save(record_steps(trainer), folder / f"{run}-{config.train.steps}-{rank}.pt")
        dist.barrier()  # the run folder is in use till then
        return trainer

    train(recipe(), "whole")
    train(recipe(shard=True, steps=2), "sharded")
    if rank == 0:
        shutil.copytree(folder / "sharded", folder / "sharded_then_one", symlinks=True)
    trainer = train(recipe(shard=True), "sharded", resume=True)
    check_divided(trainer)
    torch.save(trainer.evaluated_model.state_dict(), folder / f"model{rank}.pt")
    check_divided(train(recipe(shard=True), "one_then_sharded", resume=True))
    AcceleratorState._reset_state()  # it has one precision per process
    train(swin(), "swin_whole")
    check_divided(train(swin(shard=True), "swin_sharded"))
    dist.destroy_process_group()


def one(steps: int, **train: Any) -> Config:
    """What one process takes the same steps with."""
    return recipe(steps=steps, accumulate=4, **train)


def steps(folder: Path, run: str, length: int = 4) -> list[Steps]:
    """What each process recorded."""
    return [torch.load(folder / f"{run}-{length}-{rank}.pt") for rank in range(2)]


def mean(processes: list[Steps]) -> Steps:
    return [
        {name: (first[name] + second[name]) / 2 for name in FIGURES}
        for first, second in zip(*processes, strict=True)
    ]


def assert_same_steps(found: Steps, expected: Steps) -> None:
    assert len(found) == len(expected) > 0
    for step, other in zip(found, expected, strict=True):
        for name in FIGURES:
            assert step[name] == pytest.approx(other[name], rel=1e-5), name


def assert_same_metrics(run: Path, other: Path) -> None:
    found, expected = (json.loads((r / "metrics.json").read_text()) for r in (run, other))
    for name in ("miou", "pacc"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3) != 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    """As one process reads them."""
    return MaskFormer.from_pretrained(run / "checkpoints" / "last").state_dict()


def check_learns_the_same(runs: Path) -> None:
    for rank in range(2):
        begun, went_on = steps(runs, "sharded", 2)[rank], steps(runs, "sharded")[rank]
        assert_same_steps([*begun, *went_on], steps(runs, "whole")[rank])
    found, expected = weights(runs / "sharded"), weights(runs / "whole")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_same_metrics(runs / "sharded", runs / "whole")


def check_one_process_reads_what_was_evaluated(runs: Path) -> None:
    found = weights(runs / "sharded")
    for rank in range(2):
        evaluated = torch.load(runs / f"model{rank}.pt")
        torch.testing.assert_close(found, evaluated, rtol=0, atol=0)


def check_one_process_goes_on(runs: Path) -> None:
    trainer = build_trainer(one(4), runs / "sharded_then_one", cpu=True, resume=True)
    assert_same_steps(record_steps(trainer), mean(steps(runs, "whole"))[2:])


def check_goes_on_from_one_process(runs: Path) -> None:
    trainer = build_trainer(one(4), runs / "one", cpu=True, resume=True)
    assert_same_steps(mean(steps(runs, "one_then_sharded")), record_steps(trainer))
    saved, expected = (
        read_pickle(runs / run / "checkpoints" / "last" / STATE)["optimizer"]
        for run in ("one_then_sharded", "one")
    )
    assert saved["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(saved["state"], expected["state"], rtol=1e-4, atol=1e-7)


def check_swin_learns_the_same(runs: Path) -> None:
    whole, sharded = steps(runs, "swin_whole", 2), steps(runs, "swin_sharded", 2)
    for rank in range(2):
        assert_same_steps(sharded[rank], whole[rank])
    assert_same_metrics(runs / "swin_sharded", runs / "swin_whole")


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_two_processes_divide_a_model(tmp_path: Path) -> None:
    """One test, as all of it needs the same two processes."""
    # The weights are in the training state then, their average is the model.
    build_trainer(one(2, ema=0.5), tmp_path / "one_then_sharded", cpu=True).fit()
    shutil.copytree(tmp_path / "one_then_sharded", tmp_path / "one", symlinks=True)
    run_two(worker, free_port(), tmp_path)
    check_learns_the_same(tmp_path)
    check_one_process_reads_what_was_evaluated(tmp_path)
    check_one_process_goes_on(tmp_path)
    check_goes_on_from_one_process(tmp_path)
    check_swin_learns_the_same(tmp_path)


@pytest.mark.parametrize(
    ("override", "name"),
    [("train.ema=0.9", "ema"), ("train.compile=true", "compile"), ("train.precision=fp16", "fp16")],
)
def test_what_does_not_go_with_it_is_refused(override: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"shard cannot be combined with .*{name}"):
        load_config("ade20k/swin_l", ["train.shard=true", override])


def test_one_process_has_nothing_to_divide(tmp_path: Path) -> None:
    trainer = build_trainer(recipe(shard=True), tmp_path / "run", cpu=True)
    assert trainer.parts.shards is None
    assert trainer.evaluated_model is trainer.bare_model
