"""Backbones from timm, adapted to match those that MaskFormer was published with.

See the sections on ResNet and Swin backbones in docs/facts.md.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers.format import Format
from timm.models._features import FeatureInfo
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from maskformer.config.schema import COARSEST_STRIDE, BackboneConfig
from maskformer.errors import CheckpointError, ConfigError, HubError
from maskformer.modeling.convolution import Conv2d
from maskformer.modeling.frozen_norm import freeze_norms, scale_zero_norms
from maskformer.modeling.linear import ONEDNN_IS_FASTER, Linear
from maskformer.modeling.swin import (
    PadFirstSwinBlock,  # noqa: F401  (pickled whole models name it here)
    adapt_swin,
)
from maskformer.weights.backbone_weights import find_backbone_weights, read_backbone_weights
from maskformer.weights.hub import check_hub
from maskformer.weights.report import warning_of_values

STRIDES = (4, 8, 16, COARSEST_STRIDE)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""The files of a hub repository from which timm can load weights."""
_BAD_OPTIONS = (TypeError, ValueError, LookupError, ArithmeticError, AssertionError)
"""What timm, which checks few of its arguments, raises for sizes that are wrong."""
_FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    # Accept inputs of any size, and keep the window size on maps smaller than one window.
    "swin_transformer": {"strict_img_size": False, "always_partition": True},
    "swin_transformer_v2": {"strict_img_size": False},
}


class Backbone(nn.Module):
    """A timm `features_only` model that returns feature maps at strides 4, 8, 16 and 32.

    Building it never downloads anything; see `load_weights`.

    Args:
        config: the name of the timm model, and how it is frozen and regularised.
        options: further arguments of `timm.create_model`, such as `in_chans`. If `in_chans` is not
            3, timm adapts the first convolution of pretrained weights: it sums the RGB filters for
            one channel, and repeats and scales them otherwise.

    Raises:
        ValueError: timm has no such model or tag, its maps are not at the four strides, or
            `multi_grid` is given but the last stage is not three bottleneck blocks.
    """

    channels: tuple[int, ...]
    """The number of channels of each of the four maps, finest first."""

    def __init__(self, config: BackboneConfig, **options: Any) -> None:
        super().__init__()
        self.config = config
        self._options = _timm_options(config) | options
        try:
            self.body = timm.create_model(config.name, pretrained=False, **self._options)
        except _BAD_OPTIONS as error:
            raise ConfigError(
                f"model.backbone.options: '{config.name}' does not accept these options: "
                f"{type(error).__name__}: {error}".rstrip(": ")
            ) from error
        info = cast(FeatureInfo, self.body.feature_info)
        self._levels = _find_levels(config.name, info.reduction())
        channels = info.channels()
        self.channels = tuple(channels[level] for level in self._levels)
        self._channels_last = getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC

        self.norms: nn.ModuleList | None = None
        if adapt_swin(self.body):
            # Only the outputs are normalised; the next stage gets the map without the norm.
            self.norms = nn.ModuleList(nn.LayerNorm(count) for count in self.channels)
        if config.multi_grid is not None:
            _set_multi_grid(self.body, config)
        _use_faster_layers(self.body)
        if config.frozen_norm:
            freeze_norms(self.body)
            scale_zero_norms(self.body)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute four maps `[B, C_i, H/s_i, W/s_i]` (rounded up) from images `[B, C, H, W]`."""
        maps = self.body(x)
        maps = [maps[level] for level in self._levels]
        if self.norms is not None:
            maps = [norm(y) for norm, y in zip(self.norms, maps, strict=True)]
        if self._channels_last:
            maps = [y.permute(0, 3, 1, 2) for y in maps]
        return maps

    @property
    def fixed_input_size(self) -> tuple[int, int] | None:
        """Height and width of the only image size that this timm model accepts. None if it accepts
        any size, as the adapted Swin does.
        """
        known = timm.models.get_pretrained_cfg(self.config.name)
        if known is None or not known.fixed_input_size or self.norms is not None:
            return None
        _, height, width = known.input_size
        return height, width

    def load_weights(self, file: Path | None = None) -> None:
        """Load ImageNet weights.

        Args:
            file: a `.safetensors`, `.pth` or `.pkl` file with the entry names of timm, torchvision,
                the Swin authors, detectron2 or `efficientnet_pytorch` (code pickled in it is never
                run), or `package:NAME/FILE` for a file in an installed Python package. None means
                timm's weights from the Hugging Face hub or its local cache.

        Raises:
            RuntimeError: the hub cannot be reached, or the file's entries do not fit this backbone.
            FileNotFoundError: the file or the package does not exist.
        """
        source = self._fetch() if file is None else self._read(find_backbone_weights(file))
        if self.config.frozen_norm:
            freeze_norms(source)
        self.body.load_state_dict(source.state_dict())

    def _fetch(self) -> nn.Module:
        try:
            _check_source(self.config)
            source: nn.Module = timm.create_model(
                self.config.name, pretrained=True, **self._options
            )
        except (OSError, RuntimeError) as error:
            raise _fetch_error(self.config, error) from error
        return source

    def _read(self, file: Path) -> nn.Module:
        try:
            state = read_backbone_weights(file, self.state_dict())
            # timm converts entry names of several layouts and silently skips the entries that it
            # does not find. Loading a copy filled with NaN shows which parameters it skips.
            probe = self._create_from(
                {
                    key: torch.full_like(v, math.nan) if v.is_floating_point() else v
                    for key, v in state.items()
                }
            )
            source = self._create_from(state)
        except Exception as error:  # unpickling and safetensors raise many types
            raise CheckpointError(f"{self._misfit(file)}: {error}") from error
        missing = [
            key
            for key, v in probe.state_dict().items()
            if v.is_floating_point() and not v.isnan().all()
        ]
        if missing:
            raise CheckpointError(
                f"{self._misfit(file)}: it lacks {len(missing)} floating-point entries, such as "
                f"{missing[0]}"
            )
        if warning := warning_of_values(source.state_dict(), str(file)):
            raise CheckpointError(f"model.backbone.weights: {warning}")
        return source

    def _create_from(self, state: dict[str, Tensor]) -> nn.Module:
        overlay = {"state_dict": state}
        source: nn.Module = timm.create_model(
            self.config.name, pretrained=True, pretrained_cfg_overlay=overlay, **self._options
        )
        return source

    def _misfit(self, file: Path) -> str:
        return f"model.backbone.weights: {file} does not fit backbone '{self.config.name}'"


def check_pretrained(config: BackboneConfig) -> None:
    """Check that the ImageNet weights of a backbone are available, before other work starts.

    Raises:
        FileNotFoundError: the file or package named by `config.weights` does not exist.
        CheckpointError: the weights are not in the local cache, and the hub cannot be reached.
    """
    if config.weights is not None:
        find_backbone_weights(config.weights)
    elif config.pretrained:
        try:
            _check_source(config)
        except HubError as error:
            raise _fetch_error(config, error) from error


def _check_source(config: BackboneConfig) -> None:
    source = timm.models.get_pretrained_cfg(config.name)
    if source is not None and source.hf_hub_id:
        check_hub(source.hf_hub_id, HUB_FILES)


def _fetch_error(config: BackboneConfig, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"fetching the ImageNet weights of backbone '{config.name}' failed: {error}\n"
        "Give a local file with model.backbone.weights=FILE, or start from random weights "
        "with model.backbone.pretrained=false."
    )


def _timm_options(config: BackboneConfig) -> dict[str, Any]:
    architecture, tag = timm.models.split_model_name_tag(config.name)
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"model.backbone.name: timm has no model '{architecture}'{hint}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and config.name not in tags:
        raise ConfigError(
            f"model.backbone.name: timm has no weights '{config.name}'; it has {', '.join(tags)}"
        )
    family = timm.model_entrypoint(architecture).__module__.rpartition(".")[2]
    options: dict[str, Any] = {"features_only": True, **_FAMILY_OPTIONS.get(family, {})}
    if config.drop_path or family in _FAMILY_OPTIONS:  # timm's default for Swin is 0.1, not 0
        options["drop_path_rate"] = config.drop_path
    return options | config.options


def _find_levels(name: str, strides: list[int]) -> tuple[int, ...]:
    if not set(STRIDES) <= set(strides):
        raise ConfigError(
            f"model.backbone.name: '{name}' has feature maps at strides {strides}, "
            f"but strides {list(STRIDES)} are needed"
        )
    last = {stride: level for level, stride in enumerate(strides)}
    return tuple(last[stride] for stride in STRIDES)


def _use_faster_layers(module: nn.Module) -> None:
    """Let plain layers of a module choose the fastest library or kernel, in place."""
    for part in module.modules():
        if type(part) is nn.Conv2d:
            part.__class__ = Conv2d  # same parameters, different `forward`
        elif type(part) is nn.Linear and ONEDNN_IS_FASTER:
            part.__class__ = Linear


def _set_multi_grid(body: nn.Module, config: BackboneConfig) -> None:
    """Dilate the 3x3 convolutions of the last stage and keep its stride, as `RES5_MULTI_GRID`."""
    dilations = config.multi_grid or ()
    blocks = list(getattr(body, "layer4", ()))
    if len(blocks) != len(dilations) or not all(isinstance(block, Bottleneck) for block in blocks):
        raise ConfigError(
            "model.backbone.multi_grid: needs a ResNet with three bottleneck blocks in its last "
            f"stage, got '{config.name}'"
        )
    for block, dilation in zip(blocks, dilations, strict=True):
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
