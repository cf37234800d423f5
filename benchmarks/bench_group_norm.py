"""Group norms with ReLU of the pixel decoder, forward and backward.

The baseline (`reference`) is PyTorch's in the channels-last layout that the models use. There is no
native GPU kernel, so on a GPU `native` runs PyTorch's group norm too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels import group_norm

CASES = {
    "2x256x128x128": (2, 128),
    "2x256x64x64": (2, 64),
    "bfloat16 2x256x128x128": (2, 128),
    "bfloat16 2x256x64x64": (2, 64),
}
"""(images, side length of the feature maps); float32 unless the name says bfloat16."""
CHANNELS, GROUPS = 256, 32

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group_norm(x, GROUPS, weight, bias, relu=True)


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.group_norm(x, GROUPS, weight, bias), inplace=True)


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    images, side = (1, 12) if shrink else CASES[case]
    dtype = torch.bfloat16 if case.startswith("bfloat16") else torch.float32
    generator = torch.Generator().manual_seed(0)
    shape = (images, CHANNELS, side, side)
    maps, gradient = (
        torch.randn(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    parameters = 1 + 0.1 * torch.randn(2, CHANNELS, generator=generator).to(device)
    x, weight, bias = (value.requires_grad_() for value in (maps, *parameters.unbind()))

    def provider(norm: Norm, *inputs: Tensor) -> Provider:
        def backward(y: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, inputs, gradient.to(y))

        return Provider(lambda: norm(*inputs), backward)

    exact = (value.detach().double().requires_grad_() for value in (x, weight, bias))
    return Comparison(
        {
            NATIVE: lambda: provider(native, x, weight, bias),
            REFERENCE: lambda: provider(reference, x, weight, bias),
            COMPILE: lambda: provider(compiled(reference), x, weight, bias),
        },
        truth=provider(reference, *exact),
        tolerance=1e-2 if dtype == torch.bfloat16 else 1e-5,
        floor=Floor(0, 5 * x.numel() * x.element_size(), x.dtype),
        given=[x, weight, bias],
    )


test_group_norm = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
