"""Our own format: folders with `config.json` and `model.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from maskformer.config.load import parse_model_config
from maskformer.config.schema import ModelConfig
from maskformer.errors import ConfigError
from maskformer.system.documents import check
from maskformer.system.writing import write_json
from maskformer.weights.checkpoint import Checkpoint
from maskformer.weights.files import CONFIG_FILE, WEIGHTS_FILE, read_tensors, write_tensors
from maskformer.weights.name_map import identity_names
from maskformer.weights.schemas import NativeConfig

_OURS = re.compile(r"((?:(?:module|_orig_mod|model)\.)*)pixel_decoder\.mask_features\.weight")

LIBRARY = "maskformer"
"""The value of `library` that distinguishes our `config.json` from that of `transformers`."""


def read(folder: Path, values: Mapping[str, Any]) -> Checkpoint:
    """Read the checkpoint in a folder whose `config.json` holds `values`.

    Raises:
        FileNotFoundError: there is no weight file.
        ConfigError: the configuration is not valid in this version.
        WeightsError: the weights are damaged.
    """
    config, classes = read_config(folder, values)
    file = folder / WEIGHTS_FILE
    return Checkpoint(file, config, read_tensors(file), identity_names(), classes)


def read_config(
    folder: Path, values: Mapping[str, Any]
) -> tuple[ModelConfig, tuple[str, ...] | None]:
    """Return the model configuration and the class names in a `config.json` of ours.

    Raises:
        ConfigError: it is not valid in this version.
    """
    try:
        native = check(NativeConfig, values)
        config, classes = parse_model_config(native.model), native.classes
        if classes is not None and config.num_classes not in (None, len(classes)):
            raise ConfigError(
                f"classes has {len(classes)} names, expected {config.num_classes} as in "
                "model.num_classes"
            )
        return config, classes
    except ConfigError as error:
        file = folder / CONFIG_FILE
        raise ConfigError(f"{file} is not valid in this version: {error}") from None


def own_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the entries of a `state_dict` of one of our models, without the prefixes of wrappers
    (`module.`, `_orig_mod.`, `model.`). For any other file, return None.
    """
    found = [match for name in weights if (match := _OURS.fullmatch(name))]
    if not found:
        return None
    start = len(found[0][1])
    return {name[start:]: x for name, x in weights.items() if name.startswith(found[0][1])}


def write(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    classes: tuple[str, ...] | None,
) -> None:
    """Write a folder that `read` can read.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, weights)
    values: dict[str, Any] = {"library": LIBRARY, "model": config.model_dump(mode="json")}
    if classes is not None:
        values["classes"] = list(classes)
    write_json(folder / CONFIG_FILE, values, indent=2)
