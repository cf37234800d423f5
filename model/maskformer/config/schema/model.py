"""The sections of the network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from maskformer.config.schema.fields import (
    IS_NUMBER,
    MAX_BANDS,
    MAX_CLASSES,
    MAX_DIVISIBILITY,
    MAX_LEVEL,
    PIXEL_MEAN,
    PIXEL_STD,
    Channels,
    Count,
    Dilation,
    FilePath,
    Fraction,
    Layers,
    Name,
    Section,
)
from maskformer.system.documents import shown

Option = (
    Annotated[int, Field(ge=0, le=1 << 14)]
    | Annotated[float, Field(ge=0, le=1 << 14)]
    | Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 14)], ...], Field(max_length=16)]
)
_RESERVED_OPTIONS = frozenset(
    {
        *("cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only"),
        *("in_chans", "num_classes", "out_indices", "output_stride", "pretrained"),
        *("pretrained_cfg", "pretrained_cfg_overlay", "scriptable"),
    }
)
"""Arguments of `timm.create_model` that are not sizes, which a recipe must not set."""

MAX_BLOCKS = 512

Part = Literal[
    "stem", "stage1", "stage2", "stage3", "stage4", "backbone", "pixel_decoder", "decoder"
]
"""Parts of a model. The stages of a backbone end at strides 4, 8, 16 and 32, after the stem."""

_Mean = Annotated[float, Field(ge=-MAX_LEVEL, le=MAX_LEVEL), IS_NUMBER]
_Deviation = Annotated[float, Field(ge=1 / MAX_LEVEL, le=MAX_LEVEL), IS_NUMBER]
_PerChannel = Field(min_length=1, max_length=MAX_BANDS)


class BackboneConfig(Section):
    """A timm `features_only` model whose strides 4, 8, 16, 32 feed the pixel decoder."""

    name: Annotated[str, Field(max_length=200)] = "resnet50.tv_in1k"
    """A timm model, such as `resnet50.tv_in1k` or `swin_tiny_patch4_window7_224`."""
    pretrained: bool = True
    """In `train`, start from timm's ImageNet weights; building a model never downloads. Without
    them, initial values are timm's, not the official ones: see docs/facts.md.
    """
    weights: FilePath | None = None
    """A local file with the backbone's weights, or `package:NAME/FILE` for a file in an installed
    Python package; used instead of the download.
    """
    frozen_norm: bool = True
    """Replace BatchNorm with FrozenBatchNorm (the official choice for every ResNet)."""
    drop_path: Fraction = 0.0
    """Probability that a residual branch of the last block is skipped (stochastic depth)."""
    multi_grid: tuple[Dilation, Dilation, Dilation] | None = None
    """Dilations of the three blocks of the last ResNet stage (R101c: 1, 2, 4)."""
    options: Annotated[dict[Name, Option], Field(max_length=32)] = {}  # noqa: RUF012
    """Sizes that differ from the named model's, by timm's names: `layers` and `channels` of a
    ResNet; `embed_dim`, `depths`, `num_heads`, `window_size` and `mlp_ratio` of a Swin. A
    recipe or an override that names another model inherits none of them.
    """

    @field_validator("options")
    @classmethod
    def _sizes_only(cls, options: dict[str, Option]) -> dict[str, Option]:
        for name in _RESERVED_OPTIONS & set(options):
            raise ValueError(f"{name} is not a size of a backbone")
        for name, most in (("layers", MAX_BLOCKS), ("depths", MAX_BLOCKS), ("window_size", 64)):
            given = options.get(name, 0)
            total = sum(given) if isinstance(given, tuple) else given
            if total > most:
                in_total = " in total" if isinstance(given, tuple) else ""
                raise ValueError(f"{name} must be at most {most}{in_total}, got {shown(given)}")
        return options


class PixelDecoderConfig(Section):
    """The FPN of the paper; `encoder_layers: 6` adds the transformer encoder ("+ 6 Enc")."""

    channels: Channels = 256
    """Channels of the feature pyramid."""
    mask_channels: Channels = 256
    """Channels of the pixel features and of the mask embeddings."""
    groups: Channels = 32
    """Groups of its GroupNorm layers; must divide the channels."""
    encoder_layers: Layers = 0
    """Transformer encoder layers over the coarsest map; 6 in the "+ 6 Enc" models."""


class DecoderConfig(Section):
    """The transformer decoder over the coarsest map, and its heads."""

    queries: Count = 100
    """N: how many segments the model proposes for an image."""
    channels: Channels = 256
    """Width of the queries."""
    heads: Channels = 8
    """Attention heads; must divide the channels."""
    feedforward: Count = 2048
    """Hidden width of the feed-forward layers."""
    layers: Annotated[Layers, Field(gt=0)] = 6
    """Decoder layers; the loss is taken after each of them."""
    dropout: Fraction = 0.1
    """Probability that an activation is dropped in training."""
    enforce_input_projection: bool = False
    """Project the backbone's features even if they have the decoder's width already."""
    mask_padding: bool = False
    """In training, the attention of encoder and decoder ignores padding up to larger images of the
    batch, and positions count within each image, as in DETR. The official code does not do this.
    """


class ModelConfig(Section):
    """The network, and how its input is prepared."""

    architecture: Literal["maskformer", "per_pixel", "per_pixel_plus"] = "maskformer"
    """Mask classification, or one of the paper's two per-pixel baselines."""
    num_classes: Annotated[int, Field(gt=0, le=MAX_CLASSES), IS_NUMBER] | None = None
    """K, without "no object". Default: that of the data set."""
    backbone: BackboneConfig = BackboneConfig()
    """Turns an image into feature maps."""
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    """Turns feature maps into pixel features."""
    decoder: DecoderConfig = DecoderConfig()
    """Turns the coarsest map into classes and mask embeddings."""
    size_divisibility: Annotated[int, Field(ge=0, le=MAX_DIVISIBILITY), IS_NUMBER] = 32
    """Inputs are padded to a multiple of this; 0 pads to the batch maximum only (at least 32).
    Officially 0 in COCO panoptic models and in per-pixel models on a ResNet.
    """
    pixel_mean: Annotated[tuple[_Mean, ...], _PerChannel] = PIXEL_MEAN
    """Mean of each input channel, in units of 0..255. The number of values is the number of
    channels that the backbone takes. Default if `data.channels` is not 3: 127.5 each.
    """
    pixel_std: Annotated[tuple[_Deviation, ...], _PerChannel] = PIXEL_STD
    """Standard deviation of each input channel; as many values as `pixel_mean`."""

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.pixel_mean) != len(self.pixel_std):
            raise ValueError(
                f"pixel_mean has {len(self.pixel_mean)} values and pixel_std "
                f"{len(self.pixel_std)}, expected one of each per channel"
            )
        return self

    @property
    def num_channels(self) -> int:
        """The number of channels of the input."""
        return len(self.pixel_mean)
