"""How the maps of a network lie in memory."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn


def prefers_channels_last(model: nn.Module) -> bool:
    """Whether convolutions decide: attention in windows has a layout of its own."""
    return not any(isinstance(part, SwinTransformerBlock) for part in model.modules())
