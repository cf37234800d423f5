"""Mask logits of all layers with their backward pass.

    python benchmarks/bench_mask_logits.py                     all cases of this machine
    python benchmarks/bench_mask_logits.py --reuse-pages       with a heap that keeps its pages
    pytest benchmarks/bench_mask_logits.py                     ours alone under pytest-benchmark

Eager is the `einsum` of the official code. On a GPU, PyTorch serves ours too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, Provider, main, run_case
from harness.inputs import CASES, Floor, Inputs, make_inputs
from torch import Tensor

from mfkernels import mask_logits

Logits = Callable[[Inputs], Tensor]


def ours(inputs: Inputs) -> Tensor:
    return mask_logits(inputs.mask_embed, inputs.pixel_features)


def eager(inputs: Inputs) -> Tensor:
    return torch.einsum("lbqc,bchw->lbqhw", inputs.mask_embed, inputs.pixel_features)


def step(logits: Logits, inputs: Inputs) -> list[Tensor]:
    values = logits(inputs)
    gradients = torch.autograd.grad(
        values, [inputs.mask_embed, inputs.pixel_features], torch.ones_like(values)
    )
    return [values.detach(), *gradients]


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    inputs = make_inputs(name, device)
    computations: dict[str, Logits] = {EAGER: eager, "mfkernels": ours}
    if compiled:
        computations["torch.compile"] = torch.compile(eager)
    providers: dict[str, Provider] = {}
    forwards: dict[str, Callable[[], Any]] = {}
    for provider, logits in computations.items():
        providers[provider] = lambda logits=logits: step(logits, inputs)
        forwards[provider] = lambda logits=logits: logits(inputs)
    sizes = CASES[name]
    leading = sizes.layers * sizes.images * sizes.queries
    pixels = sizes.low[0] * sizes.low[1]
    # Three products; the logits are written and their gradient is read twice.
    flops = 3 * 2 * leading * sizes.channels * pixels
    floor = Floor(flops, 3 * 4 * leading * pixels)
    return run_case(
        "mask_logits", name, device, inputs.tensors, providers, forwards, seconds, 1e-5, floor
    )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_mask_logits(benchmark: Any, name: str) -> None:
    benchmark(step, ours, make_inputs(name, torch.device("cpu")))


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run)
