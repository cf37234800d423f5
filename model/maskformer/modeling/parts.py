"""The parts of a model by the names that `train.freeze` uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from timm.models._features import FeatureInfo
from torch import nn

from maskformer.config.schema import Part
from maskformer.errors import ConfigError
from maskformer.modeling.backbone import STRIDES, Backbone

BACKBONE_PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")
"""Stages 1 to 4 end with the maps of stride 4, 8, 16 and 32; the stem precedes stage 1."""


def modules_of_part(model: nn.Module, part: Part) -> list[nn.Module]:
    """Return the modules that make up a part.

    Raises:
        ConfigError: the model has no such part.
    """
    if part in BACKBONE_PARTS:
        return _modules_of_backbone(model.get_submodule("backbone"), BACKBONE_PARTS.index(part))
    found = dict(model.named_children()).get(part)
    if found is None:
        raise ConfigError(f"train.freeze: {type(model).__name__} has no part '{part}'")
    return [found]


def _modules_of_backbone(backbone: nn.Module, number: int) -> list[nn.Module]:
    """Return the modules that timm registers after the last one of the previous part, up to and
    including the last one of part `number`.
    """
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"train.freeze: the stages of your {type(backbone).__name__} are not known; freeze "
            "the backbone as a whole"
        )
    ends = _last_modules(backbone)
    parts: list[list[nn.Module]] = [[] for _ in (*BACKBONE_PARTS, "unused")]
    current = 0
    for name, module in _units(backbone.body, "", ends):
        parts[max(current, 1) if name in ends else current].append(module)
        if name in ends:
            current = ends.index(name) + 2
    found = parts[number]
    if number and backbone.norms is not None:
        found.append(backbone.norms[number - 1])
    return found


def _units(module: nn.Module, prefix: str, ends: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield, in the order of registration, the largest modules that lie within one stage each."""
    for name, child in module.named_children():
        if any(end.startswith(f"{prefix}{name}.") for end in ends):
            yield from _units(child, f"{prefix}{name}.", ends)
        else:
            yield f"{prefix}{name}", child


def _last_modules(backbone: Backbone) -> list[str]:
    """Return the names of the modules whose outputs are the maps of stages 1 to 4.

    Raises:
        ConfigError: a module that timm names does not exist.
    """
    info = cast(FeatureInfo, backbone.body.feature_info)
    last = {entry["reduction"]: entry["module"] for entry in info.get_dicts()}
    names = {name for name, _ in backbone.body.named_modules()}
    found = []
    for stride in STRIDES:
        # timm writes the dots of flattened modules as underscores.
        choices = (last[stride], last[stride].replace(".", "_"))
        found += [name for name in choices if name in names][:1]
    if len(found) != len(STRIDES):
        raise ConfigError(
            f"train.freeze: the stages of '{backbone.config.name}' cannot be identified; freeze "
            "backbone as a whole"
        )
    return found
