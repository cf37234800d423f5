"""The backbones of published checkpoints: timm's names and their sizes.

See the sections on ResNet and Swin backbones in docs/facts.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import timm

from maskformer.config.schema import BackboneConfig
from maskformer.errors import WeightsError

R101C_GRID = (1, 2, 4)


@dataclass(frozen=True)
class ResNetSizes:
    """A ResNet that has its strides in the 3x3 convolutions.

    Attributes:
        depths: the number of blocks in each stage.
        channels: the number of channels of each of the four maps.
        bottleneck: whether blocks have three convolutions instead of two.
        deep_stem: whether the stem has three 3x3 convolutions (64, 64, 128 channels) instead of one
            7x7 convolution.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    bottleneck: bool = True
    deep_stem: bool = False


@dataclass(frozen=True)
class SwinSizes:
    """A Swin transformer (version 1) with patches of 4x4."""

    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float = 4.0


Sizes = ResNetSizes | SwinSizes

_BASIC = (64, 128, 256, 512)
_KNOWN: dict[str, Sizes] = {
    "resnet18.tv_in1k": ResNetSizes((2, 2, 2, 2), _BASIC, bottleneck=False),
    "resnet34.tv_in1k": ResNetSizes((3, 4, 6, 3), _BASIC, bottleneck=False),
    "resnet50.tv_in1k": ResNetSizes((3, 4, 6, 3)),
    "resnet101.tv_in1k": ResNetSizes((3, 4, 23, 3)),
    "resnet152.tv_in1k": ResNetSizes((3, 8, 36, 3)),
    "resnet50s.gluon_in1k": ResNetSizes((3, 4, 6, 3), deep_stem=True),
    "resnet101s.gluon_in1k": ResNetSizes((3, 4, 23, 3), deep_stem=True),
    "resnet152s.gluon_in1k": ResNetSizes((3, 8, 36, 3), deep_stem=True),
    "swin_tiny_patch4_window7_224.ms_in1k": SwinSizes(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small_patch4_window7_224.ms_in1k": SwinSizes(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base_patch4_window7_224.ms_in22k": SwinSizes(128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "swin_base_patch4_window12_384.ms_in22k": SwinSizes(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large_patch4_window7_224.ms_in22k": SwinSizes(192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
    "swin_large_patch4_window12_384.ms_in22k": SwinSizes(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
_BY_ARCHITECTURE = {name.partition(".")[0]: sizes for name, sizes in _KNOWN.items()}
_SWIN_OPTIONS = {
    "embed_dim": "embed_dim",
    "depths": "depths",
    "heads": "num_heads",
    "window": "window_size",
    "mlp_ratio": "mlp_ratio",
}
_EXPANSION = 4


def backbone_config(sizes: Sizes, drop_path: float = 0.0) -> BackboneConfig:
    """Return the timm model with these sizes. If timm has no name for it, it is another model of
    the family with options that change its sizes.
    """
    grid = R101C_GRID if isinstance(sizes, ResNetSizes) and sizes.deep_stem else None
    name = next((name for name, known in _KNOWN.items() if known == sizes), None)
    options: dict[str, Any] = {}
    if name is None:
        name = _nearest_of_family(sizes)
        options = _options(sizes, _BY_ARCHITECTURE[name])
    return BackboneConfig(name=name, options=options, drop_path=drop_path, multi_grid=grid)


def backbone_sizes(config: BackboneConfig) -> Sizes:
    """Return the sizes of a configured backbone; the inverse of `backbone_config`.

    Raises:
        ValueError: it is neither a plain ResNet nor a Swin.
    """
    architecture, _ = timm.models.split_model_name_tag(config.name)
    sizes = _BY_ARCHITECTURE.get(architecture)
    if sizes is None:
        raise WeightsError(
            f"backbone '{config.name}' does not exist in other formats: it is neither a plain "
            "ResNet nor a Swin"
        )
    options: dict[str, Any] = dict(config.options)
    if isinstance(sizes, SwinSizes):
        known = {
            field: options.pop(option)
            for field, option in _SWIN_OPTIONS.items()
            if option in options
        }
        sizes = replace(sizes, **known)
    else:
        factor = _EXPANSION if sizes.bottleneck else 1
        if "channels" in options:
            channels = tuple(factor * width for width in options.pop("channels"))
            sizes = replace(sizes, channels=channels)
        sizes = replace(sizes, depths=tuple(options.pop("layers", sizes.depths)))
    if options:
        raise WeightsError(
            f"backbone '{config.name}' does not exist in other formats: it has the option "
            f"'{next(iter(options))}'"
        )
    return sizes


def _nearest_of_family(sizes: Sizes) -> str:
    if isinstance(sizes, SwinSizes):
        return "swin_tiny_patch4_window7_224"
    if not sizes.bottleneck:
        return "resnet18"
    return "resnet50s" if sizes.deep_stem else "resnet50"


def _options(sizes: Sizes, nearest: Sizes) -> dict[str, Any]:
    if isinstance(sizes, SwinSizes):
        return {
            option: getattr(sizes, field)
            for field, option in _SWIN_OPTIONS.items()
            if getattr(sizes, field) != getattr(nearest, field)
        }
    assert isinstance(nearest, ResNetSizes)
    options: dict[str, Any] = {}
    if sizes.depths != nearest.depths:
        options["layers"] = sizes.depths
    if sizes.channels != nearest.channels:
        factor = _EXPANSION if sizes.bottleneck else 1
        options["channels"] = tuple(count // factor for count in sizes.channels)
    return options
