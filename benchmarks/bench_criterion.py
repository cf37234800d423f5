"""Mask logits, criterion and backward pass: the official computation, its compilation, and ours.

    python benchmarks/bench_criterion.py                       all cases of this machine
    python benchmarks/bench_criterion.py --reuse-pages         with a heap that keeps its pages
    pytest benchmarks/bench_criterion.py                       ours alone under pytest-benchmark

Every provider's losses and gradients are compared first; a wrong one is reported without a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, Provider, main, run_case
from harness.inputs import CASES, Floor, Inputs, loss_floor, make_inputs, matching_floor
from harness.official import official_criterion
from torch import Tensor

from mfkernels import MaskFormerCriterion

OURS = "mfkernels"


def eager_losses(inputs: Inputs, criterion: MaskFormerCriterion) -> dict[str, Tensor]:
    masks = torch.einsum("lbqc,bchw->lbqhw", inputs.mask_embed, inputs.pixel_features)
    *aux, final = (
        {"pred_logits": logits, "pred_masks": mask}
        for logits, mask in zip(inputs.class_logits, masks, strict=True)
    )
    outputs = {**final, "aux_outputs": aux}
    return official_criterion(outputs, inputs.official_targets, criterion.num_classes)


def our_losses(inputs: Inputs, criterion: MaskFormerCriterion) -> dict[str, Tensor]:
    return criterion(inputs.factored, inputs.targets)


Losses = Callable[[Inputs, MaskFormerCriterion], Mapping[str, Tensor]]


def step(losses: Losses, inputs: Inputs, criterion: MaskFormerCriterion) -> list[Tensor]:
    values = losses(inputs, criterion)
    total = criterion.total(values)
    gradients = torch.autograd.grad(total, inputs.leaves)
    return [total.detach(), *gradients]


def criterion_floor(name: str) -> Floor:
    matching, loss = matching_floor(name), loss_floor(name)
    return Floor(matching.flops + loss.flops, matching.bytes + loss.bytes)


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    inputs = make_inputs(name, device)
    criterion = MaskFormerCriterion(CASES[name].classes).to(device)
    losses: dict[str, Losses] = {EAGER: eager_losses, OURS: our_losses}
    if compiled:
        losses["torch.compile"] = torch.compile(eager_losses)
    providers: dict[str, Provider] = {}
    forwards: dict[str, Callable[[], Any]] = {}
    for provider, each in losses.items():
        providers[provider] = lambda each=each: step(each, inputs, criterion)
        forwards[provider] = lambda each=each: criterion.total(each(inputs, criterion))
    return run_case(
        "criterion",
        name,
        device,
        inputs.tensors,
        providers,
        forwards,
        seconds,
        1e-4,
        criterion_floor(name),
    )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_criterion(benchmark: Any, name: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = make_inputs(name, device)
    criterion = MaskFormerCriterion(CASES[name].classes).to(device)

    def ours() -> None:
        step(our_losses, inputs, criterion)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark(ours)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run)
