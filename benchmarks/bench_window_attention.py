"""Attention in the shifted windows of Swin-T, forward and backward.

The baseline (`reference`) pads, rolls and copies into windows, then multiplies, in PyTorch. There
is no native GPU kernel, so on a GPU `native` runs the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.plugin import comparison_test
from torch import Tensor

from mfkernels import window_attention
from mfkernels.ops.window_attention import reference as plain

CASES = {
    "2x128x128, 3 heads": (2, 128, 3),
    "2x32x32, 12 heads": (2, 32, 12),
    "bfloat16 2x128x128, 3 heads": (2, 128, 3),
    "bfloat16 2x32x32, 12 heads": (2, 32, 12),
}
"""(images, side length of the maps, heads): stages 1 and 3 for images of 512 x 512; float32 unless
the name says bfloat16."""
CHANNELS, WINDOW, SHIFT = 32, (7, 7), (3, 3)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def native(qkv: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
    return window_attention(qkv, bias, WINDOW, SHIFT, padding)


def reference(qkv: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
    return plain.window_attention(qkv, padding, bias, *WINDOW, *SHIFT)


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    images, side, heads = (1, 9, 1) if shrink else CASES[case]
    dtype = torch.bfloat16 if case.startswith("bfloat16") else torch.float32
    generator = torch.Generator().manual_seed(0)
    tokens = WINDOW[0] * WINDOW[1]
    shapes = (
        (3, heads, CHANNELS),
        (heads, tokens, tokens),
        (images, side, side, 3, heads, CHANNELS),
    )
    padding, bias, qkv = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    inputs = tuple(value.requires_grad_() for value in (qkv.to(dtype), padding, bias))
    gradient = torch.randn(images, side, side, heads, CHANNELS, generator=generator)
    gradient = gradient.to(device, dtype)

    def provider(attention: Attention, *given: Tensor) -> Provider:
        def backward(y: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, given, gradient.to(y))

        return Provider(lambda: attention(*given), backward)

    exact = (value.detach().double().requires_grad_() for value in inputs)
    windows = images * (-(-side // WINDOW[0])) ** 2
    # Scores and products with values, and five such products in the backward pass.
    flops = 7 * 2 * windows * heads * tokens**2 * CHANNELS
    # Forward, qkv is read and a third of it written; backward, both read and qkv's size written.
    moved = (1 + 1 / 3 + 4 / 3 + 1) * qkv.numel() * dtype.itemsize
    return Comparison(
        {
            NATIVE: lambda: provider(native, *inputs),
            REFERENCE: lambda: provider(reference, *inputs),
            COMPILE: lambda: provider(compiled(reference), *inputs),
        },
        truth=provider(reference, *exact),
        tolerance=1e-2 if dtype == torch.bfloat16 else 1e-5,
        floor=Floor(flops, int(moved), torch.float32),
        given=list(inputs),
    )


test_window_attention = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
