"""Class loss of given matches with its backward pass.

    python benchmarks/bench_class_loss.py                      all cases of this machine
    pytest benchmarks/bench_class_loss.py                      ours alone under pytest-benchmark

Eager is the official way: a target for every query, then the cross-entropy of each layer. On a CPU,
PyTorch serves ours too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, main, providers_of, run_case
from harness.inputs import CASES, Floor, Inputs, make_inputs, random_matches
from torch import Tensor
from torch.nn import functional as F

from mfkernels.ops.class_loss import class_loss

NO_OBJECT_WEIGHT = 0.1

Losses = Callable[[Inputs, Tensor], Tensor]


def ours(inputs: Inputs, matches: Tensor) -> Tensor:
    loss, weight = class_loss(inputs.class_logits, inputs.targets, matches, NO_OBJECT_WEIGHT)
    return loss / weight


def eager(inputs: Inputs, matches: Tensor) -> Tensor:
    no_object = inputs.class_logits.shape[-1] - 1
    weight = inputs.class_logits.new_ones(no_object + 1)
    weight[-1] = NO_OBJECT_WEIGHT
    labels = torch.stack([target["labels"] for target in inputs.official_targets])
    losses = []
    for logits, queries in zip(inputs.class_logits, matches, strict=True):
        target = queries.new_full(logits.shape[:2], no_object).scatter(1, queries, labels)
        losses.append(F.cross_entropy(logits.mT, target, weight))
    return torch.stack(losses)


def step(losses: Losses, inputs: Inputs, matches: Tensor) -> list[Tensor]:
    values = losses(inputs, matches)
    return [values.detach(), *torch.autograd.grad(values.sum(), inputs.class_logits)]


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    inputs = make_inputs(name, device)
    matches = random_matches(inputs)
    losses: dict[str, Losses] = {EAGER: eager, "mfkernels": ours}
    if compiled:
        losses["torch.compile"] = torch.compile(eager)
    providers, forwards = providers_of(losses, step, inputs, matches)
    # The logits are read twice, and their gradient is written once.
    floor = Floor(0, 3 * 4 * inputs.class_logits.numel())
    return run_case(
        "class_loss", name, device, inputs.tensors, providers, forwards, seconds, 1e-5, floor
    )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_class_loss(benchmark: Any, name: str) -> None:
    inputs = make_inputs(name, torch.device("cpu"))
    benchmark(step, ours, inputs, random_matches(inputs))


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run)
