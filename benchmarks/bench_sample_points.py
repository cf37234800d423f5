"""Masks and logits at random points (Mask2Former), with the backward pass of logits.

    python benchmarks/bench_sample_points.py                   all cases of this machine
    pytest benchmarks/bench_sample_points.py                   ours alone under pytest-benchmark

Eager is the official way: `F.grid_sample` of a floating-point copy. On a GPU, PyTorch serves ours
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, Provider, main, run_case
from harness.inputs import Floor
from torch import Tensor
from torch.nn import functional as F

from mfkernels import sample_points

CASES = {
    "L 30 logits 256x256": (30, (256, 256), torch.float32),
    "M 30 masks 1024x1024": (30, (1024, 1024), torch.bool),
}
"""Images, their size and dtype."""
POINTS = 12544

Sample = Callable[[Tensor, Tensor], Tensor]


def make_case(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """`images [M, h, w]` and `points [M, P, 2]`."""
    count, size, dtype = CASES[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *size, generator=generator)
    points = torch.rand(count, POINTS, 2, generator=generator).to(device)
    if dtype == torch.bool:
        return (images > 1).to(device), points
    return images.to(device).requires_grad_(), points


def eager(images: Tensor, points: Tensor) -> Tensor:
    grid = (2 * points - 1)[:, None]
    maps = images[:, None].to(points.dtype)
    return F.grid_sample(maps, grid, align_corners=False)[:, 0, 0]


def step(sample: Sample, images: Tensor, points: Tensor) -> list[Tensor]:
    values = sample(images, points)
    if not images.requires_grad:
        return [values]
    return [values.detach(), *torch.autograd.grad(values.sum(), images)]


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    given = make_case(name, device)
    samples: dict[str, Sample] = {EAGER: eager, "mfkernels": sample_points}
    if compiled:
        samples["torch.compile"] = torch.compile(eager)
    providers: dict[str, Provider] = {}
    forwards: dict[str, Callable[[], Any]] = {}
    for provider, sample in samples.items():
        providers[provider] = lambda sample=sample: step(sample, *given)
        forwards[provider] = lambda sample=sample: sample(*given)
    images, points = given
    # Four neighbours and two coordinates of each point, and the gradient of all pixels.
    neighbours = 4 * images.element_size() + 2 * points.element_size()
    gradient = images.numel() * images.element_size() if images.requires_grad else 0
    floor = Floor(0, points.shape[0] * POINTS * neighbours + gradient)
    return run_case("sample_points", name, device, given, providers, forwards, seconds, 1e-5, floor)


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_sample_points(benchmark: Any, name: str) -> None:
    images, points = make_case(name, torch.device("cpu"))
    benchmark(step, sample_points, images, points)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run, CASES)
