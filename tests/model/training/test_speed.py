"""Precision, memory format and compilation change how fast a run is, not what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from helpers.recipes import TINY, tiny_recipe
from helpers.training import build_trainer, record_steps
from torch import nn

from maskformer.config.load import parse_config
from maskformer.config.schema import Config
from maskformer.system import hardware
from maskformer.training.log_window import LogWindow
from maskformer.training.speed import choose_precision


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one precision per process."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def convolutional(**train: Any) -> Config:
    """Without dropout, whose random numbers follow the layout."""
    decoder = {**TINY["model"]["decoder"], "dropout": 0.0}
    train = {**TINY["train"], "trackers": [], **train}
    evaluation = {**TINY["eval"], "pictures": 0}
    model = {**TINY["model"], "decoder": decoder}
    return parse_config({**TINY, "model": model, "train": train, "eval": evaluation})


def losses(config: Config, run: Path, **options: Any) -> list[float]:
    """Of every step."""
    steps = record_steps(build_trainer(config, run, cpu=True, **options))
    return [values["loss"] for values in steps]


def test_the_layout_does_not_change_what_is_learnt(tmp_path: Path) -> None:
    steps = 40
    plain = losses(convolutional(memory_format="contiguous", steps=steps), tmp_path / "plain")
    auto = losses(convolutional(steps=steps), tmp_path / "auto")
    assert len(auto) == steps
    assert auto[:5] == pytest.approx(plain[:5], rel=1e-5)
    assert auto == pytest.approx(plain, rel=1e-3)


def test_a_run_goes_on_in_another_layout(tmp_path: Path) -> None:
    """The moments of the optimiser follow their parameters."""
    expected = losses(convolutional(memory_format="contiguous", steps=6), tmp_path / "whole")
    losses(convolutional(memory_format="contiguous", steps=3), tmp_path / "run")
    config = convolutional(steps=6, poly_power=0.9)
    trainer = build_trainer(config, tmp_path / "run", cpu=True, resume=True)
    state = trainer.parts.optimizer.optimizer.state
    assert all(values["exp_avg"].stride() == p.stride() for p, values in state.items())
    assert any(p.stride() != p.contiguous().stride() for p in state)
    assert len(losses(config, tmp_path / "run", resume=True)) == 3 == len(expected) - 3


def test_auto_is_bf16_where_the_machine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for names, precision in (
        ((), "fp32"),
        (("_is_avx512_bf16_supported",), "bf16"),
        (("_is_amx_tile_supported",), "bf16"),
    ):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, partial(bool, name in names), raising=False)
        assert choose_precision(tiny_recipe(precision="auto").train, cpu).precision == precision
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not hardware.has_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert hardware.has_bfloat16(torch.device("cuda"))
    assert choose_precision(tiny_recipe(precision="fp16").train, cpu).precision == "fp16"


def test_the_log_says_how_it_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_trainer(convolutional(), tmp_path / "run", cpu=True)
    said = capsys.readouterr().out
    assert "running on 1 x cpu, fp32, channels_last, 1 threads" in said


def test_targets_of_other_sizes_compile_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an evaluation, whose images have other sizes."""
    monkeypatch.setattr(nn.Module, "compile", partial_method(nn.Module.compile))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = losses(convolutional(steps=4), tmp_path / "plain")
    assert not torch._dynamo.utils.counters["stats"]
    graphs = []
    config = convolutional(steps=4, compile=True, evaluate_every=2)
    trainer = build_trainer(config, tmp_path / "run", cpu=True)
    log = trainer.parts.reporter.log
    seen: list[float] = []

    def record(step: int, values: dict[str, float], window: LogWindow) -> None:
        seen.append(values["loss"])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        log(step, values, window)

    trainer.parts.reporter.log = record  # type: ignore[method-assign]
    trainer.fit()
    assert graphs[0] == graphs[-1] > 0
    assert seen == pytest.approx(plain, rel=1e-4)


def partial_method(function: Any) -> Any:
    """Compiles as `torch.compile` does, but for the code of the kernels."""

    def compile_eagerly(self: nn.Module) -> None:
        function(self, backend="aot_eager")

    return compile_eagerly
