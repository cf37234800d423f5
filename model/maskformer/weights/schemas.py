"""The parts of other configurations that are read, with the bounds of our own.

What else they hold is passed over, as its writers expect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from maskformer.config.schema import (
    MAX_BANDS,
    MAX_BLOCKS,
    MAX_CLASSES,
    Channels,
    Finite,
    Fraction,
    ImageChannels,
    Name,
    Percent,
    Positive,
    Side,
)

_Key = Annotated[str, Field(pattern=r"^[0-9]{1,6}$")]
_Stages = Annotated[int, Field(gt=0, le=MAX_BLOCKS)]
_PER_CHANNEL = Field(min_length=1, max_length=MAX_BANDS)


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class NativeConfig(Part):
    """`config.json` of this package; `model` has a schema of its own."""

    model: dict[str, Any]
    classes: Annotated[tuple[Name, ...], Field(max_length=MAX_CLASSES)] | None = None


class HeadPart(Part):
    """`config.json` of a MaskFormer of `transformers`."""

    fpn_feature_size: Channels = 256
    mask_feature_size: Channels = 256
    id2label: Annotated[dict[_Key, Name | int | float], Field(max_length=MAX_CLASSES)] | None = None
    num_labels: Annotated[int, Field(gt=0, le=MAX_CLASSES)] = 2


class ResNetPart(Part):
    """Its `backbone_config` for a ResNet."""

    depths: tuple[_Stages, _Stages, _Stages, _Stages] = (3, 4, 6, 3)
    hidden_sizes: tuple[Channels, Channels, Channels, Channels] = (256, 512, 1024, 2048)
    layer_type: Literal["bottleneck", "basic"] = "bottleneck"


class SwinPart(Part):
    """Its `backbone_config` for a Swin."""

    embed_dim: Channels = 96
    depths: tuple[_Stages, _Stages, _Stages, _Stages] = (2, 2, 6, 2)
    num_heads: tuple[Channels, Channels, Channels, Channels] = (3, 6, 12, 24)
    window_size: Annotated[int, Field(gt=0, le=64)] = 7
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    drop_path_rate: Fraction = 0.1


class SizePart(Part):
    """`size` in `preprocessor_config.json`, of which there are many forms."""

    shortest_edge: Side | None = None
    longest_edge: Side | None = None


class ReaderPart(Part):
    """How images become 8 bits; ours alone, and absent where it is the default."""

    channels: ImageChannels = 3
    value_range: tuple[Finite, Finite] | None = None
    percentiles: tuple[Percent, Percent] | None = None
    exif_orientation: Literal["apply", "ignore"] | None = None


class PreprocessorPart(Part):
    """`preprocessor_config.json`."""

    do_resize: bool = True
    size: Side | SizePart = SizePart(shortest_edge=800, longest_edge=1333)
    max_size: Side | None = None
    rescale_factor: Positive = 1 / 255
    image_mean: Annotated[tuple[Finite, ...], _PER_CHANNEL] | None = None
    image_std: Annotated[tuple[Positive, ...], _PER_CHANNEL] | None = None
    size_divisor: Annotated[int, Field(ge=0, le=1 << 12)] | None = None
    reader: ReaderPart = ReaderPart()

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        channels = self.reader.channels
        count = channels if isinstance(channels, int) else len(channels)
        for values in (self.image_mean, self.image_std):
            if values is not None and len(values) != count:
                raise ValueError(
                    f"image_mean and image_std must have {count} values, one per channel"
                )
        return self
