"""Opens and writes checkpoints of every format: which one a checkpoint has shows in its files."""

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
    """Reads a checkpoint: ours, a folder of `transformers`, or an official file.

    Args:
        own_config: of the model that the checkpoint is for; a file of weights under our names, such
            as `torch.save` of a `state_dict`, is one of this model.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        HubError: the hub cannot be reached or has no such model.
        ConfigError: the configuration is damaged or that of another model.
        ValueError: a file is damaged, holds code, or belongs to another architecture.
    """
    path = find(path_or_hub_id)
    if path.is_file():
        return _open_file(path, own_config)
    values = read_mapping(path / CONFIG_FILE)
    native_folder = values.get("library") == native.LIBRARY
    return (native if native_folder else huggingface).read(path, values)


def read_model_config(path_or_hub_id: str | Path) -> ModelConfig:
    """The model in a checkpoint; of ours the weights are not read for it.

    Raises:
        FileNotFoundError, HubError, ConfigError, ValueError: as by `open_checkpoint`.
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
            f"{file} holds weights under this package's names, but does not say of which model: "
            "build it with from_config, then load_weights(file)"
        )
    return Checkpoint(file, own_config, own, identity_names())


def write_checkpoint(
    folder: Path,
    form: Format,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    classes: tuple[str, ...] | None,
    leftovers: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Writes a checkpoint.

    Args:
        folder: of an official checkpoint, also its file.
        form: `"native"`, `"hf"` or `"official"`.
        config: of the model.
        weights: its entries under our names.
        classes: the names of its classes.
        leftovers: unused entries of the checkpoint that it came from, written back as they were.
        settings: those of that checkpoint, likewise.

    Raises:
        WeightsError: the format cannot express this model.
        ValueError: no such format.
        OSError: the folder cannot be written.
    """
    if form == "native":
        native.write(folder, config, weights, classes)
    elif form == "hf":
        huggingface.write(folder, config, weights, classes, leftovers, settings)
    elif form == "official":
        official.write(folder, config, weights, leftovers)
    else:
        raise ValueError(f"format must be 'native', 'hf' or 'official', got {form!r}")


def why_not_written(form: Format, config: ModelConfig) -> str | None:
    """Why a format cannot express a model; None where it can."""
    try:
        if form == "hf":
            huggingface.check_expressible(config)
        elif form == "official":
            official.check_expressible(config)
    except WeightsError as error:
        return str(error)
    return None


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """The names of the classes in a folder of a model, or None.

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
        return None  # transformers' own names for classes without any
    return tuple(names)


def find(path_or_hub_id: str | Path) -> Path:
    """A local file or folder (of a run, that of its checkpoint; see `find_local`), or the hub's
    files in the local cache.

    Raises:
        FileNotFoundError: nothing there.
        HubError: the hub cannot be reached or has no such model.
    """
    path = Path(path_or_hub_id)
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
            f"'{path_or_hub_id}' is no local folder{here}, and the Hugging Face hub failed: {error}"
        ) from error


def is_hub_id(name: str | Path) -> bool:
    """Whether it reads like the id of a model on the Hugging Face hub, and like no weight file."""
    return bool(_HUB_ID.fullmatch(str(name))) and Path(name).suffix not in WEIGHT_SUFFIXES


def _download(hub_id: str) -> Path:
    small = [CONFIG_FILE, PREPROCESSOR_FILE]
    kinds = (["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json"])
    for patterns in kinds:  # the second only where the first finds no weights
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=small + patterns))
        if any((folder / name).exists() for name in huggingface.WEIGHT_FILES):
            break
    return folder
