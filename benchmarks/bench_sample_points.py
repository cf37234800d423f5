"""Sampling masks and logits at random points (Mask2Former); backward for logits only.

The baseline (`reference`) does what the official code does: `F.grid_sample` on a floating-point
copy. There is no native GPU kernel, so on a GPU `native` runs PyTorch operators too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels import sample_points

CASES = {
    "L 30 logits 256x256": (30, (256, 256), torch.float32),
    "M 30 masks 1024x1024": (30, (1024, 1024), torch.bool),
}
"""(number of images, their size, their dtype)."""
POINTS = 12544


def make_inputs(case: str, device: torch.device, shrink: bool) -> tuple[Tensor, Tensor]:
    """`images [M, h, w]` and `points [M, P, 2]`."""
    count, size, dtype = CASES[case]
    points = POINTS
    if shrink:
        count, size, points = 3, (size[0] // 8, size[1] // 8), 500
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *size, generator=generator)
    places = torch.rand(count, points, 2, generator=generator).to(device)
    if dtype == torch.bool:
        return (images > 1).to(device), places
    return images.to(device).requires_grad_(), places


def reference(images: Tensor, points: Tensor) -> Tensor:
    grid = (2 * points - 1)[:, None]
    maps = images[:, None].to(points.dtype)
    return F.grid_sample(maps, grid, align_corners=False)[:, 0, 0]


def provider(sample: Callable[..., Tensor], images: Tensor, points: Tensor) -> Provider:
    if not images.requires_grad:
        return Provider(lambda: sample(images, points))
    return Provider(
        lambda: sample(images, points), lambda values: torch.autograd.grad(values.sum(), images)
    )


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    images, points = make_inputs(case, device, shrink)
    build = partial(provider, images=images, points=points)
    exact = images if images.dtype == torch.bool else images.detach().double().requires_grad_()
    # Minimum memory traffic: per point, four neighbouring pixels and two coordinates; for logits,
    # also the gradient of every pixel.
    neighbours = 4 * images.element_size() + 2 * points.element_size()
    gradient = images.numel() * images.element_size() if images.requires_grad else 0
    return Comparison(
        {
            NATIVE: lambda: build(sample_points),
            REFERENCE: lambda: build(reference),
            COMPILE: lambda: build(compiled(reference)),
        },
        truth=provider(reference, exact, points.double()),
        tolerance=1e-5,
        floor=Floor(0, points.shape[0] * points.shape[1] * neighbours + gradient),
        given=[images, points],
    )


test_sample_points = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
