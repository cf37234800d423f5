"""From backbone maps to per-pixel embeddings at stride 4 (paper §4.1; `pixel_decoder.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from maskformer.config.schema import DecoderConfig, PixelDecoderConfig
from maskformer.errors import ConfigError
from maskformer.modeling.convolution import Conv2d
from maskformer.modeling.group_norm import GroupNorm
from maskformer.modeling.transformer import Encoder, Sizes, init_conv


class ConvNorm(nn.Module):
    """Convolution without bias, group norm, and optionally ReLU."""

    def __init__(
        self, in_channels: int, config: PixelDecoderConfig, kernel_size: int, relu: bool
    ) -> None:
        super().__init__()
        channels = config.channels
        conv = Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.conv = init_conv(conv)
        self.norm: nn.Module = GroupNorm(config.groups, channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` to `[B, C, H, W]`."""
        x = self.conv(x)
        if isinstance(self.norm, GroupNorm):
            y: Tensor = self.norm(x, relu=self.relu)
            return y
        # Another norm in its place, or one of a model that was pickled by an earlier version.
        y = self.norm(x)
        return functional.relu(y, inplace=True) if self.relu else y


class PixelDecoder(nn.Module):
    """A feature pyramid; with `encoder_layers`, the coarsest map first goes through an encoder.

    Args:
        in_channels: the number of channels of each backbone map, finest first.
        config: the widths of the decoder and the number of encoder layers.
        transformer: heads, feed-forward width and dropout of the encoder layers.

    Raises:
        ValueError: the number of channels is not a multiple of the groups or heads.
    """

    def __init__(
        self, in_channels: Sequence[int], config: PixelDecoderConfig, transformer: DecoderConfig
    ) -> None:
        super().__init__()
        channels = config.channels
        if channels % config.groups:
            raise ConfigError(
                "model.pixel_decoder.groups: "
                f"{channels} channels do not divide into {config.groups} groups"
            )
        *finer, coarsest = in_channels
        self.encoder: Encoder | None = None
        if config.encoder_layers:
            self.input_proj = init_conv(nn.Conv2d(coarsest, channels, kernel_size=1))
            self.encoder = Encoder(channels, config.encoder_layers, transformer)
            coarsest = channels
        self.memory_channels = coarsest
        self.laterals = nn.ModuleList(ConvNorm(count, config, 1, relu=False) for count in finer)
        self.outputs = nn.ModuleList(ConvNorm(channels, config, 3, relu=True) for _ in finer)
        self.outputs.append(ConvNorm(coarsest, config, 3, relu=True))
        # The paper says 1x1; the published models have 3x3.
        self.mask_features = init_conv(Conv2d(channels, config.mask_channels, 3, padding=1))

    def forward(self, maps: Sequence[Tensor], sizes: Sizes | None = None) -> tuple[Tensor, Tensor]:
        """Compute pixel features and the memory of the query decoder from backbone maps.

        Args:
            maps: the maps of the backbone, finest first.
            sizes: the size of each image on the coarsest map. If given, the encoder ignores the
                padding.

        Returns:
            Pixel features `[B, mask_channels, h, w]` at the finest map's size, and the decoder's
            memory `[B, memory_channels, H/32, W/32]`.
        """
        *finer, memory = maps
        if self.encoder is not None:
            memory = self.encoder(self.input_proj(memory), sizes)
        x = self.outputs[-1](memory)
        for level in range(len(finer) - 1, -1, -1):
            lateral = self.laterals[level](finer[level])
            x = self.outputs[level](
                lateral + functional.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            )
        return self.mask_features(x), memory
