"""Matching cost of all layers, mask logits included: the official computation and ours.

python benchmarks/bench_matching_cost.py                   all cases of this machine
python benchmarks/bench_matching_cost.py --reuse-pages     with a heap that keeps its pages
pytest benchmarks/bench_matching_cost.py                   ours alone under pytest-benchmark
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, Provider, main, run_case
from harness.inputs import CASES, Inputs, make_inputs, matching_floor
from torch import Tensor

from mfkernels import matching_cost, use_backend


def ours(inputs: Inputs) -> list[Tensor]:
    return [matching_cost(*inputs.leaves, inputs.targets)]


@torch.no_grad()
def eager(inputs: Inputs) -> list[Tensor]:
    with use_backend("reference"):
        return ours(inputs)


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    inputs = make_inputs(name, device)
    providers: dict[str, Provider] = {
        EAGER: lambda: eager(inputs),
        "mfkernels": lambda: ours(inputs),
    }
    if compiled:
        graph = torch.compile(eager)
        providers["torch.compile"] = lambda: graph(inputs)
    return run_case(
        "matching_cost",
        name,
        device,
        inputs.tensors,
        providers,
        {},
        seconds,
        1e-5,
        matching_floor(name),
    )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_matching_cost(benchmark: Any, name: str) -> None:
    inputs = make_inputs(name, torch.device("cpu"))
    benchmark(ours, inputs)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run)
