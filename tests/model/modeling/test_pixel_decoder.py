"""Convolutions with group norms of the pixel decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskformer.config.schema import PixelDecoderConfig
from maskformer.modeling.group_norm import GroupNorm
from maskformer.modeling.pixel_decoder import ConvNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("relu", [False, True])
def test_another_norm_may_take_its_place(relu: bool, layout: torch.memory_format) -> None:
    """ReLU stays, also after the `nn.GroupNorm` of models that earlier versions pickled."""
    torch.manual_seed(0)
    block = ConvNorm(8, PixelDecoderConfig(channels=32, groups=4), 3, relu)
    x = torch.randn(2, 8, 7, 5).to(memory_format=layout)
    y = F.group_norm(block.conv(x), 4)
    expected = F.relu(y) if relu else y
    torch.testing.assert_close(block(x), expected)
    block.norm = nn.GroupNorm(4, 32)
    torch.testing.assert_close(block(x), expected)


def test_only_the_norm_is_trained() -> None:
    """Before torch 2.14, PyTorch's norm crashed for maps with channels last and no gradient."""
    norm = GroupNorm(3, 24)  # 24 channels: not by the kernel
    x = torch.randn(2, 24, 7, 5)
    slopes = [
        torch.autograd.grad(norm(maps, relu=True).square().sum(), list(norm.parameters()))
        for maps in (x, x.to(memory_format=torch.channels_last))
    ]
    torch.testing.assert_close(slopes[0], slopes[1])
