"""Focal and dice loss of logits that already exist in memory, forward and backward.

A and B: the matched masks of one layer at full resolution (MaskFormer). C: the sampled points of
one layer (Mask2Former), sampling included. `torchvision` combines torchvision's focal loss with a
handwritten dice loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels import focal_dice_loss, point_loss, use_backend

CASES: dict[str, tuple[int, tuple[int, int], int | None]] = {
    "A 36 masks 512x512": (36, (512, 512), None),
    "B 12 masks 800x1344": (12, (800, 1344), None),
    "C 30 masks 12544 points": (30, (256, 256), 12544),
}
"""(number of masks, size of the logits, number of points or None for whole masks)."""


@dataclass(frozen=True)
class Inputs:
    """`logits [N, h, w]`, `masks [N, H, W]` bool, and `points [N, P, 2]` or None."""

    logits: Tensor
    masks: Tensor
    points: Tensor | None


Losses = Callable[[Inputs], tuple[Tensor, Tensor]]


def make_inputs(case: str, device: torch.device, shrink: bool) -> Inputs:
    count, size, points = CASES[case]
    if shrink:
        count, size, points = 4, (size[0] // 8, size[1] // 8), points and 500
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, *size, generator=generator).to(device).requires_grad_()
    scale = 1 if points is None else 4
    shape = (count, *(scale * side for side in size))
    masks = (torch.rand(shape, generator=generator) < 0.2).to(device)
    if points is None:
        return Inputs(logits, masks, None)
    return Inputs(logits, masks, torch.rand(count, points, 2, generator=generator).to(device))


def native(inputs: Inputs) -> tuple[Tensor, Tensor]:
    if inputs.points is None:
        return focal_dice_loss(inputs.logits, inputs.masks)
    return point_loss(inputs.logits, inputs.masks, inputs.points)


def reference(inputs: Inputs) -> tuple[Tensor, Tensor]:
    with use_backend("reference"):
        return native(inputs)


def torchvision() -> Losses:
    from torchvision.ops import sigmoid_focal_loss

    def losses(inputs: Inputs) -> tuple[Tensor, Tensor]:
        logits, masks = inputs.logits, inputs.masks.to(inputs.logits.dtype)
        if inputs.points is not None:
            grid = (2 * inputs.points - 1)[:, None].to(logits.dtype)
            logits, masks = (
                F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]
                for maps in (logits, masks)
            )
        logits, masks = logits.flatten(1), masks.flatten(1)
        # Mask2Former uses plain cross-entropy: no alpha balancing, no focusing.
        alpha, gamma = (0.25, 2.0) if inputs.points is None else (-1.0, 0.0)
        focal = sigmoid_focal_loss(logits, masks, alpha=alpha, gamma=gamma).mean(1).sum()
        probability = logits.sigmoid()
        sums = (2 * (probability * masks).sum(1) + 1) / (probability.sum(1) + masks.sum(1) + 1)
        return focal / len(masks), (1 - sums).sum() / len(masks)

    return losses


def provider(losses: Losses, inputs: Inputs) -> Provider:
    return Provider(
        lambda: losses(inputs),
        lambda values: torch.autograd.grad(values[0] + values[1], inputs.logits),
    )


def in_float64(inputs: Inputs) -> Inputs:
    points = None if inputs.points is None else inputs.points.double()
    return Inputs(inputs.logits.detach().double().requires_grad_(), inputs.masks, points)


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    inputs = make_inputs(case, device, shrink)
    build = partial(provider, inputs=inputs)
    given = [x for x in (inputs.logits, inputs.masks, inputs.points) if x is not None]
    # Minimum memory traffic: logits and masks are read twice, the gradient is written once. At
    # points, few pixels of the masks are read, which are not counted.
    sizes = [x.numel() * x.element_size() for x in given]
    return Comparison(
        {
            NATIVE: lambda: build(native),
            REFERENCE: lambda: build(reference),
            COMPILE: lambda: build(compiled(reference)),
            "torchvision": lambda: build(torchvision()),
        },
        truth=provider(torchvision(), in_float64(inputs)),
        tolerance=1e-5,
        floor=Floor(0, 3 * sizes[0] + (2 * sizes[1] if inputs.points is None else 0)),
        given=given,
    )


test_focal_dice = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE, "torchvision"], make)
