"""Mask losses of given matches with their backward pass, mask logits included.

    python benchmarks/bench_mask_loss.py                       all cases of this machine
    python benchmarks/bench_mask_loss.py --reuse-pages         with a heap that keeps its pages
    pytest benchmarks/bench_mask_loss.py                       ours alone under pytest-benchmark

Eager is the official way: all mask logits, then every matched mask at full size at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, main, providers_of, run_case
from harness.inputs import CASES, Inputs, loss_floor, make_inputs, random_matches
from torch import Tensor
from torch.nn import functional as F

from mfkernels import mask_loss
from mfkernels.ops.focal_dice.reference import focal_dice_loss

Losses = Callable[[Inputs, Tensor], Tensor]


def ours(inputs: Inputs, matches: Tensor) -> Tensor:
    losses = mask_loss(inputs.mask_embed, inputs.pixel_features, inputs.targets, matches)
    return torch.stack(losses)


def eager(inputs: Inputs, matches: Tensor) -> Tensor:
    logits = torch.einsum("lbqc,bchw->lbqhw", inputs.mask_embed, inputs.pixel_features)
    masks = torch.cat([target["masks"] for target in inputs.official_targets]).float()
    count = masks.shape[0]
    losses = []
    for layer, queries in zip(logits, matches, strict=True):
        image = torch.arange(len(queries), device=queries.device)[:, None].expand_as(queries)
        chosen = layer[image.flatten(), queries.flatten()]
        size = masks.shape[-2:]
        fine = F.interpolate(chosen[:, None], size, mode="bilinear", align_corners=False)
        focal, dice = focal_dice_loss(fine.flatten(1), masks.flatten(1), 0.25, 2.0)
        losses.append(torch.stack([focal.sum(), dice.sum()]) / count)
    return torch.stack(losses, 1)


def step(losses: Losses, inputs: Inputs, matches: Tensor) -> list[Tensor]:
    values = losses(inputs, matches)
    gradients = torch.autograd.grad(values.sum(), [inputs.mask_embed, inputs.pixel_features])
    return [values.detach(), *gradients]


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    inputs = make_inputs(name, device)
    matches = random_matches(inputs)
    losses: dict[str, Losses] = {EAGER: eager, "mfkernels": ours}
    if compiled:
        losses["torch.compile"] = torch.compile(eager)
    providers, forwards = providers_of(losses, step, inputs, matches)
    return run_case(
        "mask_loss",
        name,
        device,
        inputs.tensors,
        providers,
        forwards,
        seconds,
        1e-4,
        loss_floor(name),
    )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_mask_loss(benchmark: Any, name: str) -> None:
    inputs = make_inputs(name, torch.device("cpu"))
    benchmark(step, ours, inputs, random_matches(inputs))


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run)
