"""Convolutions with group norms of the pixel decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskformer.config.schema import PixelDecoderConfig
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
