"""What all models share: building from a recipe, checking inputs, saving and loading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskformer.backbones import STRIDES, Backbone
from maskformer.config import (
    ConfigError,
    ModelConfig,
    load_config,
    merge_model_config,
    parse_model_config,
)
from maskformer.pixel_decoders import PixelDecoder

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LISTED = 5


class SegmentationModel(nn.Module):
    """A backbone and a pixel decoder; subclasses add their head and `forward`.

    Raises:
        ValueError: no number of classes, or sizes that do not fit each other.
    """

    _architectures: ClassVar[dict[str, type[SegmentationModel]]] = {}

    def __init_subclass__(cls, architecture: str) -> None:
        super().__init_subclass__()
        SegmentationModel._architectures[architecture] = cls

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_classes is None:
            raise ValueError(
                "model.num_classes: a model needs the number of classes; pass num_classes=K"
            )
        self.config = config
        self.num_classes: int = config.num_classes
        self.backbone = Backbone(config.backbone)
        self.pixel_decoder = PixelDecoder(
            self.backbone.channels, config.pixel_decoder, config.decoder
        )

    @staticmethod
    def from_config(name_or_file: str | Path, **overrides: Any) -> SegmentationModel:
        """An untrained model; nothing is downloaded.

        Args:
            name_or_file: a recipe, such as `"ade20k/r50"`; its architecture decides the class of
                the result.
            overrides: values of the recipe's `model` section, such as `num_classes=20` or
                `decoder={"queries": 50}`.

        Raises:
            ConfigError: no such recipe, unknown keys or wrong types.
            ValueError: the number of classes is left to the data set, and it is not given.
        """
        return build_model(merge_model_config(load_config(name_or_file).model, overrides))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> SegmentationModel:
        """A model saved by `save_pretrained`, in evaluation mode.

        Args:
            path_or_hub_id: a folder, or an id `owner/name` on the Hugging Face hub.

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            RuntimeError: the hub cannot be reached or has no such model.
            ValueError: a file is damaged, or the weights do not fit the configuration.
        """
        folder = _find_folder(str(path_or_hub_id))
        model = build_model(_read_config(folder / CONFIG_FILE))
        model.load_weights(folder)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; each is complete or absent.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()
        }
        text = json.dumps(
            {"library": "maskformer", "model": self.config.model_dump(mode="json")}, indent=2
        )
        _replace(
            folder / WEIGHTS_FILE, lambda file: save_file(weights, file, metadata={"format": "pt"})
        )
        _replace(folder / CONFIG_FILE, lambda file: file.write_text(text + "\n", encoding="utf-8"))

    def load_weights(self, folder: str | Path) -> None:
        """Takes over the weights of a folder that `save_pretrained` wrote for an equal model.

        Raises:
            FileNotFoundError: the folder holds no weights.
            ValueError: the file is damaged, or its weights do not fit this model.
        """
        file = Path(folder) / WEIGHTS_FILE
        weights = _read_weights(file)
        _check_weights(weights, self.state_dict(), file)
        self.load_state_dict(weights)

    def load_backbone_weights(self, file: str | Path | None = None) -> None:
        """Loads ImageNet weights into the backbone; see `Backbone.load_weights`."""
        self.backbone.load_weights(None if file is None else Path(file))

    def _decode_pixels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B,3,H,W]` to pixel features `[B,C,h,w]` and memory `[B,C',H/32,W/32]`."""
        _check_images(pixel_values)
        pixel_features, memory = self.pixel_decoder(self.backbone(pixel_values))
        return pixel_features, memory


def build_model(config: ModelConfig) -> SegmentationModel:
    """An untrained model of the configured architecture; nothing is downloaded.

    Raises:
        ValueError: no number of classes, an unknown backbone, or sizes that do not fit each other.
    """
    return SegmentationModel._architectures[config.architecture](config)


def _check_images(pixel_values: Tensor) -> None:
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"pixel_values must be [B, 3, H, W], got shape {list(shape)}")
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values must be normalised floating-point images, got {pixel_values.dtype}"
        )
    if min(shape[2:]) < STRIDES[-1]:
        raise ValueError(
            f"pixel_values must have at least {STRIDES[-1]} rows and columns, got {list(shape)}"
        )


def _find_folder(path_or_hub_id: str) -> Path:
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(
            f"{folder} is a file; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if not _HUB_ID.fullmatch(path_or_hub_id):
        raise FileNotFoundError(f"no such folder: {folder}")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                path_or_hub_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
            )
        )
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"'{path_or_hub_id}' is no local folder, and the Hugging Face hub failed: {error}"
        ) from error


def _read_config(file: Path) -> ModelConfig:
    _check_exists(file)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(values, Mapping) or values.get("library") != "maskformer":
        raise ValueError(
            f'{file} was not written by save_pretrained: it lacks "library": "maskformer"'
        )
    try:
        return parse_model_config(values["model"])
    except (KeyError, ConfigError) as error:
        raise ValueError(f"{file} describes no model of this version: {error}") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    _check_exists(file)
    try:
        weights: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged: {error}"
        ) from error
    return weights


def _check_exists(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}")


def _check_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    misshaped = [
        f"{name} {list(given[name].shape)}, expected {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": misshaped,
    }
    lines = [f"  {len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    if lines:
        head = f"{file} does not fit the model that {CONFIG_FILE} describes:"
        raise ValueError("\n".join([head, *lines]))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED] + ["..."] * (len(names) > _LISTED))


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Writes beside `file`, then puts the result in its place."""
    partial = file.with_name(file.name + ".partial")
    try:
        write(partial)
        partial.replace(file)
    except SafetensorError as error:
        raise OSError(f"could not write {file}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
