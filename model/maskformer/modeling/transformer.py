"""DETR's transformer as MaskFormer uses it (Carion et al. 2020, appendix A.3;
official `transformer.py` and `transformer_predictor.py`).

Layers are post-norm, and tensors are batch-first. Positions are added to queries and keys, never to
values. As in the published models, attention includes the zero padding of the images, unless the
sizes of the images are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskformer.config.schema import DecoderConfig
from maskformer.errors import ConfigError

TEMPERATURE = 10_000.0
EPSILON = 1e-6

Sizes = Sequence[tuple[int, int]]
"""Rows and columns of each image of a batch, on a feature map."""


class _Layer(nn.Module):
    """The residual branches that encoder and decoder layers consist of."""

    def __init__(self, channels: int, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(
            channels, config.heads, config.dropout, batch_first=True
        )
        self.linear1 = nn.Linear(channels, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, channels)
        self.dropout = nn.Dropout(config.dropout)

    def _attend(
        self,
        attention: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        attended: Tensor = attention(
            query, key, value, key_padding_mask=padding, need_weights=False
        )[0]
        return self.dropout(attended)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(functional.relu(self.linear1(x)))
        return self.dropout(self.linear2(hidden))


class EncoderLayer(_Layer):
    """Self-attention over the N = H*W tokens of a feature map, then two linear layers."""

    def __init__(self, channels: int, config: DecoderConfig) -> None:
        super().__init__(channels, config)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor | None = None) -> Tensor:
        """Update the tokens.

        Args:
            x: `[B, N, C]`.
            positions: `[N, C]` or `[B, N, C]`.
            padding: `[B, N]` bool, True for tokens to ignore.

        Returns:
            `[B, N, C]`.
        """
        positioned = x + positions
        x = self.norm1(x + self._attend(self.self_attn, positioned, positioned, x, padding))
        y: Tensor = self.norm2(x + self._feed_forward(x))
        return y


class DecoderLayer(_Layer):
    """Self-attention among the queries, cross-attention to the image, then two linear layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config.channels, config)
        self.cross_attn = nn.MultiheadAttention(
            config.channels, config.heads, config.dropout, batch_first=True
        )
        self.norm1 = nn.LayerNorm(config.channels)
        self.norm2 = nn.LayerNorm(config.channels)
        self.norm3 = nn.LayerNorm(config.channels)

    def forward(
        self,
        x: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        positioned_memory: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Update the state of the queries.

        Args:
            x: `[B, Q, C]`.
            query_positions: `[Q, C]`.
            memory: `[B, N, C]`, the tokens of the image.
            positioned_memory: `[B, N, C]`, `memory` with positions added.
            padding: `[B, N]` bool, True for tokens to ignore.

        Returns:
            `[B, Q, C]`.
        """
        positioned = x + query_positions
        x = self.norm1(x + self._attend(self.self_attn, positioned, positioned, x))
        positioned = x + query_positions
        x = self.norm2(
            x + self._attend(self.cross_attn, positioned, positioned_memory, memory, padding)
        )
        y: Tensor = self.norm3(x + self._feed_forward(x))
        return y


class Encoder(nn.Module):
    """Encoder layers over a feature map, without a final norm."""

    def __init__(self, channels: int, depth: int, config: DecoderConfig) -> None:
        super().__init__()
        _check_heads(channels, config.heads)
        self.layers = nn.ModuleList(EncoderLayer(channels, config) for _ in range(depth))
        _init_xavier(self)

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """`[B, C, H, W]` to the same shape. Attention ignores tokens outside `sizes`, if given."""
        tokens = _flatten(x)
        positions, padding = _positions_and_padding(x, sizes)
        for layer in self.layers:
            tokens = layer(tokens, positions, padding)
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class QueryDecoder(nn.Module):
    """Learned queries that attend to the coarsest map; the state after every layer is an output.

    Args:
        in_channels: the channels of the map. A 1x1 convolution projects them to `config.channels`
            if the numbers differ or `config.enforce_input_projection` is set.
        queries: the number of queries, Q.
        config: the layers, heads and widths.
    """

    def __init__(self, in_channels: int, queries: int, config: DecoderConfig) -> None:
        super().__init__()
        _check_heads(config.channels, config.heads)
        self.input_proj: nn.Module = nn.Identity()
        if in_channels != config.channels or config.enforce_input_projection:
            self.input_proj = init_conv(nn.Conv2d(in_channels, config.channels, kernel_size=1))
        self.query_embed = nn.Embedding(queries, config.channels)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.channels)
        _init_xavier(self.layers)

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """`[B, in_channels, H, W]` to `[L, B, Q, C]`, the normalised state after each layer.
        Attention ignores tokens outside `sizes`, if given.
        """
        x = self.input_proj(x)
        memory = _flatten(x)
        positions, padding = _positions_and_padding(x, sizes)
        positioned_memory = memory + positions
        queries = self.query_embed.weight
        # The state starts at zero, so the first self-attention has no effect; published weights
        # include it nevertheless.
        state = queries.new_zeros(x.shape[0], *queries.shape)
        states = []
        for layer in self.layers:
            state = layer(state, queries, memory, positioned_memory, padding)
            states.append(state)
        y: Tensor = self.norm(torch.stack(states))
        return y


def init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """Initialise weights uniformly within +-sqrt(3 / fan_in), and the bias with zero.

    This is `c2_xavier_fill` of detectron2.
    """
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _init_xavier(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def _flatten(x: Tensor) -> Tensor:
    """`[B, C, H, W]` to `[B, H*W, C]`."""
    return x.flatten(2).transpose(1, 2)


def _positions_and_padding(x: Tensor, sizes: Sizes | None) -> tuple[Tensor, Tensor | None]:
    """Return the position encoding and the padding mask of a map `[B, C, H, W]`.

    Without `sizes`, the encoding is `[H*W, C]` and there is no mask. With them, the encoding is
    `[B, H*W, C]`, relative to the size of each image, and the mask `[B, H*W]` is True outside it.
    """
    channels, height, width = x.shape[1:]
    encode = partial(sine_position_encoding, channels=channels, device=x.device, dtype=x.dtype)
    if sizes is None:
        return encode(height, width).flatten(1).T, None
    rests = [(0, width - columns, 0, height - rows) for rows, columns in sizes]
    maps = [functional.pad(encode(*size), rest) for size, rest in zip(sizes, rests, strict=True)]
    outside = torch.stack(
        [
            functional.pad(torch.zeros(size, dtype=torch.bool), rest, value=True)
            for size, rest in zip(sizes, rests, strict=True)
        ]
    )
    return _flatten(torch.stack(maps)), outside.flatten(1).to(x.device, non_blocking=True)


def _check_heads(channels: int, heads: int) -> None:
    if channels % heads:
        raise ConfigError(
            f"model.decoder.heads: {channels} channels do not divide into {heads} heads"
        )
    if channels % 4:
        raise ConfigError(f"model.decoder.channels: must be a multiple of 4, got {channels}")


class MLP(nn.Module):
    """Linear layers with ReLU in between and PyTorch's default initialisation."""

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


def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the sine encoding of row and column positions (Carion et al. 2020, appendix A.4).

    Args:
        height, width: the size of the feature map.
        channels: a multiple of four; the first half encodes rows, the second half columns,
            sine on even and cosine on odd channels of each half.
        device: the device of the result.
        dtype: the dtype of the result; the angles are always computed in float32.

    Returns:
        `[channels, height, width]`.

    Raises:
        ValueError: `channels` is not a multiple of four.
    """
    if channels % 4:
        raise ValueError(
            f"channels must be a multiple of 4 (sine and cosine on two axes), got {channels}"
        )
    half = channels // 2
    octave = torch.arange(half // 2, device=device, dtype=torch.float32) * (2 / half)
    frequencies = TEMPERATURE**-octave

    def axis(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        position = position / (length + EPSILON) * (2 * math.pi)
        angles = frequencies[:, None] * position
        return torch.stack((angles.sin(), angles.cos()), dim=1).flatten(0, 1)

    rows = axis(height)[:, :, None].expand(half, height, width)
    columns = axis(width)[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns)).to(dtype)
