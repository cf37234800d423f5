"""Opening and writing checkpoints of all formats. The format is detected from the files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import Tensor

from maskformer.config.choices import Format
from maskformer.config.schema import ModelConfig
from maskformer.errors import HubError, WeightsError
from maskformer.system.documents import read_mapping
from maskformer.system.listing import why_absent
from maskformer.system.paths import given_path
from maskformer.weights import huggingface, native, official
from maskformer.weights.checkpoint import Checkpoint
from maskformer.weights.files import (
    CONFIG_FILE,
    WEIGHT_SUFFIXES,
    check_weight_file,
    read_tensors,
)
from maskformer.weights.locate import find_local
from maskformer.weights.name_map import identity_names
from maskformer.weights.preprocessor import PREPROCESSOR_FILE

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_checkpoint(
    path_or_hub_id: str | Path, own_config: ModelConfig | None = None
) -> Checkpoint:
    """Read a checkpoint: one of ours, a folder of `transformers`, or an official file.

    Args:
        path_or_hub_id: a folder, a file or a hub id.
        own_config: the configuration of the model to load into. It is used for a file that has only
            weights under our names, such as a `state_dict` saved with `torch.save`.

    Raises:
        FileNotFoundError: the path does not exist, or a file is missing.
        HubError: the hub cannot be reached or has no such model.
        ConfigError: the configuration is damaged or describes another model.
        ValueError: a file is damaged, contains code, or belongs to another architecture.
    """
    path = find(path_or_hub_id)
    if path.is_file():
        return _open_file(path, own_config)
    values = read_mapping(path / CONFIG_FILE)
    native_folder = values.get("library") == native.LIBRARY
    return (native if native_folder else huggingface).read(path, values)


def read_model_config(path_or_hub_id: str | Path) -> ModelConfig:
    """Return the model configuration of a checkpoint. In our own format, the weights are not read.

    Raises:
        FileNotFoundError, HubError, ConfigError, ValueError: as in `open_checkpoint`.
    """
    path = find(path_or_hub_id)
    if path.is_dir():
        values = read_mapping(path / CONFIG_FILE)
        if values.get("library") == native.LIBRARY:
            return native.read_config(path, values)[0]
    return open_checkpoint(path).config


def _open_file(file: Path, own_config: ModelConfig | None) -> Checkpoint:
    check_weight_file(file)
    weights = read_tensors(file)
    own = native.own_weights(weights)
    if own is None:
        return official.read(file, weights)
    if own_config is None:
        raise WeightsError(
            f"{file} holds weights of this package without a configuration of the model: build it "
            "with from_config, then load_weights(file)"
        )
    return Checkpoint(file, own_config, own, identity_names())


def write_checkpoint(
    folder: Path,
    form: Format,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    classes: tuple[str, ...] | None,
    unused: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Write a checkpoint.

    Args:
        folder: the folder; for `"official"`, it may also be a file.
        form: `"native"`, `"hf"` or `"official"`.
        config: the configuration of the model.
        weights: the entries under our names.
        classes: the names of the classes.
        unused: the unused entries of the checkpoint that the model was loaded from, which are
            written back unchanged.
        settings: the `settings` of that checkpoint, which are written back, too.

    Raises:
        WeightsError: the format cannot express this model.
        ValueError: there is no such format.
        OSError: the folder cannot be written.
    """
    if form == "native":
        native.write(folder, config, weights, classes)
    elif form == "hf":
        huggingface.write(folder, config, weights, classes, unused, settings)
    elif form == "official":
        official.write(folder, config, weights, unused)
    else:
        raise ValueError(f"format must be 'native', 'hf' or 'official', got {form!r}")


def why_not_expressible(form: Format, config: ModelConfig) -> str | None:
    """Return why a format cannot express a model, or None if it can."""
    try:
        if form == "hf":
            huggingface.check_expressible(config)
        elif form == "official":
            official.check_expressible(config)
    except WeightsError as error:
        return str(error)
    return None


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the classes in the folder of a model, or None.

    Raises:
        ConfigError: the configuration is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    values = read_mapping(folder / CONFIG_FILE)
    names = values.get("classes") or (
        huggingface.class_names(values) if "id2label" in values else None
    )
    if names is None or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None  # the default names of transformers
    return tuple(names)


def find(path_or_hub_id: str | Path) -> Path:
    """Find a local file or folder (see `find_local`), or download a model from the hub into the
    local cache.

    Raises:
        FileNotFoundError: the path does not exist.
        HubError: the hub cannot be reached or has no such model.
    """
    path = given_path("path_or_hub_id", path_or_hub_id)
    if path.exists():
        return find_local(path) or path
    if path.suffix in WEIGHT_SUFFIXES:
        raise FileNotFoundError(f"no such file: {path}")
    if not is_hub_id(path_or_hub_id):
        raise FileNotFoundError(f"no such folder: {path}")
    try:
        return _download(str(path_or_hub_id))
    except (OSError, ValueError) as error:
        here = f" ({why_absent(path)})" if path.parent.is_dir() else ""
        raise HubError(
            f"'{path_or_hub_id}' is not a local folder{here}, and downloading it from the Hugging "
            f"Face hub failed: {error}"
        ) from error


def is_hub_id(name: str | Path) -> bool:
    """Whether a name looks like a model's id on the Hugging Face hub and not like a weight file."""
    return bool(_HUB_ID.fullmatch(str(name))) and Path(name).suffix not in WEIGHT_SUFFIXES


def _download(hub_id: str) -> Path:
    small = [CONFIG_FILE, PREPROCESSOR_FILE]
    kinds = (["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json"])
    for patterns in kinds:  # download `.bin` files only if there are no `.safetensors` files
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=small + patterns))
        if any((folder / name).exists() for name in huggingface.WEIGHT_FILES):
            break
    return folder
