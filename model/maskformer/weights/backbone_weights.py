"""Weights of a backbone alone, such as those of ImageNet, under the names that timm takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from timm.models import clean_state_dict
from torch import Tensor

from maskformer.weights.files import read_tensors
from maskformer.weights.name_map import Names
from maskformer.weights.official import resnet_table


def read_backbone_weights(file: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a file in timm's, torchvision's, the Swin authors' or detectron2's naming.

    Args:
        file: nothing pickled in it is run.
        wanted: entries of the `Backbone`.

    Returns:
        The entries under names that timm renames and loads.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: it is damaged or holds code.
    """
    state = read_tensors(file)
    if "stem.conv1.weight" not in state:  # as in every ResNet of detectron2
        return clean_state_dict(state)
    names = Names(resnet_table(deep_stem="stem.conv2.weight" in state, theirs=""))
    entries = {f"backbone.{name}": entry for name, entry in wanted.items()}
    found, _ = names.to_ours(state, entries, "")
    return {name.removeprefix("backbone.body."): entry for name, entry in found.items()}
