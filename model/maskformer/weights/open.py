"""One door to every kind of checkpoint: which kind it is shows in its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import Tensor

from maskformer.config.schema import ModelConfig, parse_model_config
from maskformer.errors import ConfigError, HubError, WeightsError
from maskformer.system.documents import check
from maskformer.weights import huggingface, official
from maskformer.weights.files import WEIGHT_SUFFIXES, read_json, read_tensors
from maskformer.weights.huggingface import CONFIG_FILE, WEIGHTS_FILE
from maskformer.weights.locate import find_local
from maskformer.weights.name_map import Names, identity_names
from maskformer.weights.report import LoadReport
from maskformer.weights.schemas import NativeConfig

LIBRARY = "maskformer"
PREPROCESSOR_FILE = "preprocessor_config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        origin: its weight file, for messages.
        config: the model it holds, without weights.
        weights: its entries, under its own names.
        names: how they translate.
        classes: names of the classes, where it has them.
    """

    origin: Path
    config: ModelConfig
    weights: dict[str, Tensor]
    names: Names
    classes: tuple[str, ...] | None = None

    def match(self, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
        """The entries of a model, as far as they fit, and what does not."""
        return self.names.to_ours(self.weights, wanted, str(self.origin))


def open_checkpoint(path_or_hub_id: str | Path) -> Checkpoint:
    """Reads a checkpoint: ours, a folder of `transformers`, or an official file.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        HubError: the hub cannot be reached or has no such model.
        ConfigError: the configuration is damaged or that of another model.
        ValueError: a file is damaged, holds code, or belongs to another architecture.
    """
    path = find(path_or_hub_id)
    if path.is_file():
        return _open_official(path)
    values = read_json(path / CONFIG_FILE)
    file = path / CONFIG_FILE
    if values.get("library") == LIBRARY:
        config, classes = read_native_config(values, file)
        weights = read_tensors(path / WEIGHTS_FILE)
        return Checkpoint(path / WEIGHTS_FILE, config, weights, identity_names(), classes)
    try:
        config = huggingface.read_config(values, huggingface.read_preprocessor(path))
        classes = huggingface.class_names(values)
    except ValueError as error:
        raise ConfigError(f"{file} describes no model that can be loaded: {error}") from error
    origin, weights = huggingface.read_weights(path)
    return Checkpoint(origin, config, weights, huggingface.huggingface_names(), classes)


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
    if not _HUB_ID.fullmatch(str(path_or_hub_id)):
        raise FileNotFoundError(f"no such folder: {path}")
    try:
        return _download(str(path_or_hub_id))
    except (OSError, ValueError) as error:
        raise HubError(
            f"'{path_or_hub_id}' is no local folder, and the Hugging Face hub failed: {error}"
        ) from error


def _download(hub_id: str) -> Path:
    small = [CONFIG_FILE, PREPROCESSOR_FILE]
    kinds = (["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json"])
    for patterns in kinds:  # the second only where the first finds no weights
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=small + patterns))
        if any((folder / name).exists() for name in huggingface.WEIGHT_FILES):
            break
    return folder


def read_native_config(
    values: Mapping[str, Any], file: Path
) -> tuple[ModelConfig, tuple[str, ...] | None]:
    """The model and the names of its classes in a `config.json` of ours.

    Raises:
        ConfigError: it describes no model of this version.
    """
    try:
        native = check(NativeConfig, values)
        return parse_model_config(native.model), native.classes
    except ConfigError as error:
        raise ConfigError(f"{file} describes no model of this version: {error}") from None


def native_config(config: ModelConfig, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """What `config.json` holds in our own folders."""
    values: dict[str, Any] = {"library": LIBRARY, "model": config.model_dump(mode="json")}
    return values if classes is None else values | {"classes": list(classes)}


def check_weight_file(file: Path) -> None:
    """Refuses a file that cannot hold weights, by its name.

    Raises:
        ValueError: another suffix.
    """
    if file.suffix not in WEIGHT_SUFFIXES:
        raise WeightsError(
            f"{file} is a file; give the folder that holds {CONFIG_FILE}, or a weight file "
            f"({', '.join(sorted(WEIGHT_SUFFIXES))})"
        )


def _open_official(file: Path) -> Checkpoint:
    check_weight_file(file)
    weights = read_tensors(file)
    config = official.infer_config(weights, str(file))
    names = official.official_names(config, official.is_zoo_layout(weights))
    return Checkpoint(file, config, weights, names)
