"""The prediction heads that all decoder layers share."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Linear layers with ReLU in between; PyTorch's default initialisation (facts §1.6)."""

    def __init__(self, channels: int, hidden: int, out_channels: int, depth: int = 3) -> None:
        super().__init__()
        widths = (channels, *(hidden,) * (depth - 1), out_channels)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., channels]` to `[..., out_channels]`."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y
