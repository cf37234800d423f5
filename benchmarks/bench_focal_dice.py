"""Focal and dice loss of logits that are already there, with their backward pass.

    python benchmarks/bench_focal_dice.py                      all cases of this machine
    python benchmarks/bench_focal_dice.py --reuse-pages        with a heap that keeps its pages
    pytest benchmarks/bench_focal_dice.py                      ours alone under pytest-benchmark

A and B: the matched masks of one layer at full size (MaskFormer). C: one layer's points of
Mask2Former, sampling included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, Provider, main, run_case
from harness.inputs import Floor
from torch import Tensor

from mfkernels import focal_dice_loss, point_loss, use_backend

CASES = {
    "A 36 masks 512x512": (36, (512, 512), None),
    "B 12 masks 800x1344": (12, (800, 1344), None),
    "C 30 masks 12544 points": (30, (256, 256), 12544),
}
"""Masks, size of the logits, points."""

Losses = Callable[[], tuple[Tensor, Tensor]]


def make_case(name: str, device: torch.device) -> tuple[list[Tensor], Losses]:
    """The inputs, logits first, and the losses of them."""
    masks, size, points = CASES[name]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(masks, *size, generator=generator).to(device).requires_grad_()
    scale = 1 if points is None else 4
    shape = (masks, *(scale * side for side in size))
    targets = (torch.rand(shape, generator=generator) < 0.2).to(device)
    if points is None:
        return [logits, targets], lambda: focal_dice_loss(logits, targets)
    places = torch.rand(masks, points, 2, generator=generator).to(device)
    return [logits, targets, places], lambda: point_loss(logits, targets, places)


def step(losses: Losses, logits: Tensor) -> list[Tensor]:
    loss_mask, loss_dice = losses()
    total = loss_mask + loss_dice
    return [total.detach(), *torch.autograd.grad(total, logits)]


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    given, ours = make_case(name, device)

    def eager() -> tuple[Tensor, Tensor]:
        with use_backend("reference"):
            return ours()

    losses: dict[str, Losses] = {EAGER: eager, "mfkernels": ours}
    if compiled:
        losses["torch.compile"] = torch.compile(eager)
    providers: dict[str, Provider] = {
        provider: lambda each=each: step(each, given[0]) for provider, each in losses.items()
    }
    # Logits and targets are read twice, the gradient is written once.
    sizes = [x.numel() * x.element_size() for x in given]
    floor = Floor(0, 3 * sizes[0] + (2 * sizes[1] if CASES[name][2] is None else 0))
    return run_case(
        "focal_dice", name, device, given, providers, dict(losses), seconds, 1e-5, floor
    )


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_focal_dice(benchmark: Any, name: str) -> None:
    given, losses = make_case(name, torch.device("cpu"))
    benchmark(step, losses, given[0])


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run, CASES)
