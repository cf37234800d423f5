"""Schemas of the parts of other configuration files that are read, with the limits of our own.

All other keys are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from maskformer.config.schema import MAX_BLOCKS, fields

_Key = Annotated[str, Field(pattern=r"^[0-9]{1,6}$")]
_Stages = Annotated[int, Field(gt=0, le=MAX_BLOCKS)]
_PER_CHANNEL = Field(min_length=1, max_length=fields.MAX_BANDS)


BILINEAR = 2
"""Pillow's number for bilinear resampling."""


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class NativeConfig(Part):
    """`config.json` of this package; `model` has a schema of its own."""

    model: dict[str, Any]
    classes: Annotated[tuple[fields.Name, ...], Field(max_length=fields.MAX_CLASSES)] | None = None


class HeadPart(Part):
    """`config.json` of a MaskFormer of `transformers`."""

    fpn_feature_size: fields.Channels = 256
    mask_feature_size: fields.Channels = 256
    id2label: (
        Annotated[dict[_Key, fields.Name | int | float], Field(max_length=fields.MAX_CLASSES)]
        | None
    ) = None
    num_labels: Annotated[int, Field(gt=0, le=fields.MAX_CLASSES)] = 2


class ResNetPart(Part):
    """`backbone_config` of `transformers` for a ResNet."""

    depths: tuple[_Stages, _Stages, _Stages, _Stages] = (3, 4, 6, 3)
    hidden_sizes: tuple[fields.Channels, fields.Channels, fields.Channels, fields.Channels] = (
        256,
        512,
        1024,
        2048,
    )
    layer_type: Literal["bottleneck", "basic"] = "bottleneck"


class SwinPart(Part):
    """`backbone_config` of `transformers` for a Swin."""

    embed_dim: fields.Channels = 96
    depths: tuple[_Stages, _Stages, _Stages, _Stages] = (2, 2, 6, 2)
    num_heads: tuple[fields.Channels, fields.Channels, fields.Channels, fields.Channels] = (
        3,
        6,
        12,
        24,
    )
    window_size: Annotated[int, Field(gt=0, le=64)] = 7
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    drop_path_rate: fields.Fraction = 0.1


class SizePart(Part):
    """`size` in `preprocessor_config.json`, of which there are many forms."""

    shortest_edge: fields.Side | None = None
    longest_edge: fields.Side | None = None


class ReaderPart(Part):
    """The conversion of images to 8 bits: our extension, which is omitted for the defaults."""

    channels: fields.ImageChannels = 3
    value_range: tuple[fields.Finite, fields.Finite] | None = None
    percentiles: tuple[fields.Percent, fields.Percent] | None = None
    exif_orientation: Literal["apply", "ignore"] | None = None

    @property
    def num_channels(self) -> int:
        return self.channels if isinstance(self.channels, int) else len(self.channels)


class PreprocessorPart(Part):
    """`preprocessor_config.json`."""

    do_resize: bool = True
    size: fields.Side | SizePart = SizePart(shortest_edge=800, longest_edge=1333)
    max_size: fields.Side | None = None
    resample: int | None = BILINEAR
    do_rescale: bool | None = True
    rescale_factor: Annotated[fields.Positive, Field(validate_default=True)] = 1 / 255
    do_normalize: bool | None = True
    image_mean: Annotated[tuple[fields.Finite, ...], _PER_CHANNEL] | None = None
    image_std: Annotated[tuple[fields.Positive, ...], _PER_CHANNEL] | None = None
    size_divisor: Annotated[int, Field(ge=0, le=fields.MAX_DIVISIBILITY)] | None = None
    pad_size: Any = None
    reader: ReaderPart = ReaderPart()
    resize_logits: bool = False

    @field_validator("rescale_factor", mode="before")
    @classmethod
    def _unused_factor(cls, factor: Any, others: ValidationInfo) -> Any:
        """Ignore the factor if images are not rescaled."""
        return 1.0 if others.data.get("do_rescale") is False else factor

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        count = self.reader.num_channels
        for values in (self.image_mean, self.image_std):
            if values is not None and len(values) != count:
                raise ValueError(
                    f"image_mean and image_std must have {count} values, one per channel"
                )
        return self
