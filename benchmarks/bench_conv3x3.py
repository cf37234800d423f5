"""3x3 convolutions of the pixel decoder and of a ResNet-50, forward and backward.

The baseline (`reference`) is PyTorch's convolution in the channels-last layout that the models use.
There is no native GPU kernel, so on a GPU `native` runs PyTorch's convolution too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels import conv3x3

CASES = {
    "pixel decoder 2x256x128x128": (2, 256, 128),
    "pixel decoder 2x256x64x64": (2, 256, 64),
    "stage 1 2x64x128x128": (2, 64, 128),
    "stage 2 2x128x64x64": (2, 128, 64),
    "stage 3 2x256x32x32": (2, 256, 32),
    "bfloat16 2x256x128x128": (2, 256, 128),
}
"""(images, channels, side length of the feature maps); float32 unless the name says bfloat16."""

Convolution = Callable[[Tensor, Tensor], Tensor]


def reference(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    images, channels, side = (1, 32, 12) if shrink else CASES[case]
    dtype = torch.bfloat16 if case.startswith("bfloat16") else torch.float32
    generator = torch.Generator().manual_seed(0)
    shapes = ((images, channels, side, side), (channels, channels, 3, 3))
    x, weight = (
        torch.randn(shape, generator=generator)
        .to(device, dtype, memory_format=torch.channels_last)
        .requires_grad_()
        for shape in shapes
    )
    gradient = torch.randn(shapes[0], generator=generator).to(x)

    def provider(convolve: Convolution, *inputs: Tensor) -> Provider:
        def backward(y: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, inputs, gradient.to(y))

        return Provider(lambda: convolve(*inputs), backward)

    exact = (value.detach().double().requires_grad_() for value in (x, weight))
    # Three products (the output and two gradients), each with a quarter of the FLOPs of direct
    # convolution, as Winograd's F(4x4, 3x3) needs; the maps and their gradients move once each.
    operations = 3 * 2 * 9 * channels * x.numel() / 4
    return Comparison(
        {
            NATIVE: lambda: provider(conv3x3, x, weight),
            REFERENCE: lambda: provider(reference, x, weight),
            COMPILE: lambda: provider(compiled(reference), x, weight),
        },
        truth=provider(reference, *exact),
        tolerance=1e-2 if dtype == torch.bfloat16 else 1e-5,
        floor=Floor(operations, 4 * x.numel() * x.element_size(), x.dtype),
        given=[x, weight],
    )


test_conv3x3 = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
