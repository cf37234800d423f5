"""The parts of other configurations that are read, with the bounds of our own.

What else they hold is passed over, as its writers expect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from maskformer.config.schema import (
    MAX_BLOCKS,
    MAX_CLASSES,
    Channels,
    Finite,
    Fraction,
    Name,
    Positive,
    Side,
)

_Key = Annotated[str, Field(pattern=r"^[0-9]{1,6}$")]
_Stages = Annotated[int, Field(gt=0, le=MAX_BLOCKS)]
_Triple = tuple[Finite, Finite, Finite]


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


class PreprocessorPart(Part):
    """`preprocessor_config.json`."""

    do_resize: bool = True
    size: Side | SizePart = SizePart(shortest_edge=800, longest_edge=1333)
    max_size: Side | None = None
    rescale_factor: Positive = 1 / 255
    image_mean: _Triple | None = None
    image_std: tuple[Positive, Positive, Positive] | None = None
    size_divisor: Annotated[int, Field(ge=0, le=1 << 12)] | None = None
