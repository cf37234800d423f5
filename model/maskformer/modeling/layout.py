"""The memory format in which a network runs fastest."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn


def prefers_channels_last(model: nn.Module) -> bool:
    """Return whether convolutions dominate, which are faster in channels-last memory format.

    The maps of a Swin have channels last anyway.
    """
    return not any(isinstance(part, SwinTransformerBlock) for part in model.modules())
