"""The base class of all models: building from a recipe, checking inputs, saving and loading."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from maskformer.config.choices import Format
from maskformer.config.load import load_config, merge_model_config
from maskformer.config.schema import ModelConfig, Part
from maskformer.errors import ConfigError, UsageError, WeightsError
from maskformer.modeling.backbone import STRIDES, Backbone
from maskformer.modeling.batch_norm import explain_single_values
from maskformer.modeling.parts import modules_of_part
from maskformer.modeling.pixel_decoder import PixelDecoder
from maskformer.modeling.transformer import Sizes
from maskformer.system.paths import given_path
from maskformer.weights import (
    Checkpoint,
    LoadReport,
    WeightsMismatchError,
    open_checkpoint,
    warning_of_config,
    warning_of_values,
    write_checkpoint,
)

MAX_SIZE = 1 << 33
"""Limit in bytes for an untrained model: ten times the size of the largest published model."""
GROWTH, SLACK = 4, 1 << 28
"""A model built for a checkpoint may take `GROWTH` times its bytes plus `SLACK` bytes, so that a
damaged or hostile configuration cannot exhaust the memory.
"""


class SegmentationModel(nn.Module, ABC):
    """A backbone and a pixel decoder; subclasses add their head and `forward`.

    Args:
        config: the `model` section of a recipe.

    Attributes:
        config: the same.
        class_names: the names of the K classes if a checkpoint contained them, otherwise None.
            They are saved with the model.

    Raises:
        ValueError: the number of classes is missing, or sizes do not fit together.
    """

    _architectures: ClassVar[dict[str, type[SegmentationModel]]] = {}

    def __init_subclass__(cls, architecture: str | None = None) -> None:
        """Register the class of an architecture; a subclass without one shares its base's."""
        super().__init_subclass__()
        if architecture is not None:
            SegmentationModel._architectures[architecture] = cls

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_classes is None:
            raise ConfigError(
                "model.num_classes: a model needs the number of classes; pass num_classes=K"
            )
        self.config = config
        self.class_names: tuple[str, ...] | None = None
        self._unused_weights: dict[str, Tensor] = {}
        self._settings: Mapping[str, Any] = {}
        self._frozen: list[nn.Module] = []
        self.num_classes: int = config.num_classes
        self.backbone = Backbone(config.backbone, in_chans=config.num_channels)
        self.pixel_decoder = PixelDecoder(
            self.backbone.channels, config.pixel_decoder, config.decoder
        )

    @classmethod
    def from_config(cls, name_or_file: str | Path, **overrides: Any) -> SegmentationModel:
        """Build an untrained model; nothing is downloaded.

        Args:
            name_or_file: a recipe, such as `"ade20k/r50"`. Its architecture decides the class of
                the model; if you call this on your own subclass of that class, the result is an
                instance of your subclass.
            overrides: values of the recipe's `model` section, such as `num_classes=20` or
                `decoder={"queries": 50}`.

        Raises:
            ConfigError: the recipe does not exist, a key is unknown, a type is wrong, or a size is
                invalid.
            ValueError: neither the recipe nor `overrides` gives the number of classes.
        """
        config = merge_model_config(load_config(name_or_file).model, overrides)
        check_size(config)
        return build_model(config, cls)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        warn: Callable[[str], None] = warnings.warn,
        **overrides: Any,
    ) -> SegmentationModel:
        """Load a trained model, in evaluation mode. Code in a file is never run.

        Supported are folders written by `save_pretrained`; run folders, of which the best
        checkpoint is loaded, or the last one if there is no best one yet; folders and hub models of
        `transformers` (MaskFormer with a ResNet or Swin backbone); and the authors' `.pkl` and
        `.pth` files, whose architecture is derived from the weights.

        Args:
            path_or_hub_id: a folder, a file, or an id `owner/name` on the Hugging Face hub.
            strict: raise an error for missing and unexpected entries. If False, missing entries
                keep their random initialisation, and a warning lists them.
            ignore_mismatched_sizes: let entries of another shape, such as a head for other classes,
                keep their random initialisation; a warning lists them.
            warn: called with a message if weights hold NaN or infinity.
            overrides: values of the `model` section that replace the checkpoint's, such as
                `num_classes=20`.

        Raises:
            FileNotFoundError: the folder does not exist, or a file is missing in it.
            HubError: the hub cannot be reached or has no such model; a `RuntimeError`.
            ConfigError: a key of `overrides` is unknown, or a value has the wrong type.
            ValueError: a file is damaged, holds code, or belongs to another architecture.
            WeightsMismatchError: the weights do not fit the configuration; a `ValueError` with
                the full `report`.
        """
        checkpoint = open_checkpoint(path_or_hub_id)
        config = merge_model_config(checkpoint.config, overrides)
        # Match and check the sizes on the meta device, before any memory is allocated.
        shapes = _build_shapes(config, cls)
        found, report = _match_weights(checkpoint, shapes, strict, ignore_mismatched_sizes)
        given = sum(weight.nbytes for weight in checkpoint.weights.values())
        _check_bytes(shapes, GROWTH * given + SLACK, f"its weights take {given:,}")
        model = build_model(config, cls)
        model._load_matched(checkpoint, found, report, warn)
        if checkpoint.classes is not None and len(checkpoint.classes) == model.num_classes:
            model.class_names = checkpoint.classes
        return model.eval()

    def save_pretrained(self, folder: str | Path, format: Format = "native") -> None:  # noqa: A002
        """Save the model. Files are written atomically: each is complete or absent.

        Args:
            folder: the folder, which is created if necessary. For `"official"`, it may also be a
                `.pkl` file.
            format: `"native"` writes `config.json` and `model.safetensors`. `"hf"` writes a folder
                that `transformers.MaskFormerForInstanceSegmentation` loads. `"official"` writes
                `model_final.pkl` as in the authors' model zoo (NumPy arrays). What the latter two
                contain besides the weights is copied from the checkpoint that the model was loaded
                from if that had the same format, and has default values otherwise.

        Raises:
            ValueError: the format cannot express this model, parts of the model do not match its
                `config`, or `class_names` has the wrong length; the message says why.
            OSError: the folder cannot be written.
        """
        weights = self.state_dict()
        self._check_shapes(weights)
        names = self.class_names
        if names is not None and len(names) != self.num_classes:
            raise WeightsError(
                f"class_names has {len(names)} names, expected one for each of the "
                f"{self.num_classes} classes, or None"
            )
        write_checkpoint(
            given_path("folder", folder),
            format,
            self.config,
            weights,
            names,
            self._unused_weights,
            self._settings,
        )

    def _check_shapes(self, weights: Mapping[str, Tensor]) -> None:
        """Check that the saved model can be loaded again with its configuration.

        Raises:
            WeightsError: parts were replaced and no longer match `config`.
        """
        wanted = _build_shapes(self.config, type(self)).state_dict()
        for name in {**wanted, **weights}:
            shape, expected = (
                list(x[name].shape) if name in x else "missing" for x in (weights, wanted)
            )
            if shape != expected:
                raise WeightsError(
                    f"{name} is {shape}, but in a model of this config {expected}: it could not "
                    "be loaded again. To change the classes, use from_pretrained(..., "
                    "num_classes=K, ignore_mismatched_sizes=True); to change other parts, write "
                    "a subclass"
                )

    def load_weights(
        self,
        path: str | Path,
        *,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        warn: Callable[[str], None] = warnings.warn,
    ) -> LoadReport:
        """Load the weights of a checkpoint, in place.

        Args:
            path: any checkpoint that `from_pretrained` reads, or a file with a `state_dict`.
            strict, ignore_mismatched_sizes: as in `from_pretrained`.
            warn: called with a message if weights hold NaN or infinity, or if they compute
                something else in this model because a value without a shape differs, such as the
                number of attention heads.

        Returns:
            A report of the entries that were not loaded. There are none unless `strict` or
            `ignore_mismatched_sizes` allows them.

        Raises:
            FileNotFoundError, HubError, ValueError: as in `from_pretrained`.
        """
        checkpoint = open_checkpoint(path, self.config)
        found, report = _match_weights(checkpoint, self, strict, ignore_mismatched_sizes)
        if warning := warning_of_config(checkpoint.config, self.config, report.origin):
            warn(warning)
        self._load_matched(checkpoint, found, report, warn)
        return report

    def _load_matched(
        self,
        checkpoint: Checkpoint,
        found: Mapping[str, Tensor],
        report: LoadReport,
        warn: Callable[[str], None],
    ) -> None:
        self.load_state_dict(found, strict=False)
        loaded = self.state_dict()
        if warning := warning_of_values({name: loaded[name] for name in found}, report.origin):
            warn(warning)
        self._unused_weights = {name: checkpoint.weights[name] for name in report.unused}
        self._settings = checkpoint.settings

    @torch.no_grad()
    def reorder_classes(self, order: Sequence[int]) -> None:
        """Give class k the weights of class `order[k]`, in place.

        Args:
            order: a permutation of 0..K-1, which is not checked.
        """
        for entry in self._class_entries():
            entry[: len(order)] = entry[torch.as_tensor(order, device=entry.device)]

    @abstractmethod
    def _class_entries(self) -> list[Tensor]:
        """Return the parameters whose row k belongs to class k, for the K classes."""

    def load_backbone_weights(self, file: str | Path | None = None) -> None:
        """Load ImageNet weights into the backbone.

        Args:
            file: see `maskformer.modeling.backbone.Backbone.load_weights`.
        """
        self.backbone.load_weights(None if file is None else given_path("file", file))

    def freeze(self, parts: Iterable[Part]) -> None:
        """Freeze parts of the model: no gradients, and evaluation mode even during training.

        Args:
            parts: names of parts, as in `train.freeze` of a recipe.

        Raises:
            ConfigError: the model has no such part, or no trainable parameter would be left.
        """
        for part in parts:
            modules = modules_of_part(self, part)
            self._frozen += modules
            for module in modules:
                module.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError("train.freeze: no trainable parameter would be left")
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `nn.Module.train` does, but keep frozen parts in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _sizes_on_coarsest_map(
        self, pixel_values: Tensor, image_sizes: Sizes | None
    ) -> Sizes | None:
        """Return the size of each image on the coarsest map if attention ignores the padding,
        otherwise None.

        Raises:
            ValueError: there is not one size per image, or a size is larger than the input.
        """
        if image_sizes is None or not self.config.decoder.mask_padding:
            return None
        height, width = pixel_values.shape[-2:]
        fit = all(0 < rows <= height and 0 < columns <= width for rows, columns in image_sizes)
        if not fit or len(image_sizes) != len(pixel_values):
            raise ValueError(
                f"image_sizes must be {len(pixel_values)} pairs of height and width, at most "
                f"{height} and {width}, got {list(image_sizes)}"
            )
        stride = STRIDES[-1]
        return [(-(-rows // stride), -(-columns // stride)) for rows, columns in image_sizes]

    def _decode_pixels(
        self, pixel_values: Tensor, sizes: Sizes | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the pixel features `[B, C, h, w]` and the decoder's memory
        `[B, C', H/32, W/32]` of images `[B, channels, H, W]`.
        """
        _check_images(pixel_values, self.config.num_channels)
        try:
            maps = self.backbone(pixel_values)
        except ValueError as error:
            raise explain_single_values(error, pixel_values) from error
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            size, given = self.backbone.fixed_input_size, tuple(pixel_values.shape[-2:])
            if size in (None, given):
                raise
            raise UsageError(
                f"backbone '{self.config.backbone.name}' takes images of {size} pixels only, got "
                f"{given}: {error}"
            ) from error
        pixel_features, memory = self.pixel_decoder(maps, sizes)
        return pixel_features, memory


def build_model(
    config: ModelConfig, wanted: type[SegmentationModel] = SegmentationModel
) -> SegmentationModel:
    """Build an untrained model of the configured architecture; nothing is downloaded.

    Args:
        config: the `model` section of a recipe.
        wanted: if this is a subclass of the architecture's class, build an instance of it.

    Raises:
        ConfigError: `wanted` is a user-defined class of another architecture.
        ValueError: the number of classes is missing, the backbone is unknown, or sizes do not fit
            together.
    """
    # Importing these modules registers their classes. It happens here because they import this one.
    import maskformer.modeling.maskformer
    import maskformer.modeling.per_pixel  # noqa: F401

    kinds = SegmentationModel._architectures
    kind = kinds[config.architecture]
    if issubclass(wanted, kind):
        return wanted(config)
    if wanted not in (SegmentationModel, *kinds.values()):
        raise ConfigError(
            f"model.architecture is {config.architecture}, whose class is {kind.__name__}; "
            f"{wanted.__name__} does not inherit from it"
        )
    return kind(config)


def check_size(config: ModelConfig) -> None:
    """Check the size of a model before memory is allocated for it.

    Raises:
        ConfigError: the weights would take more than `MAX_SIZE` bytes.
        ValueError: as `build_model`.
    """
    _check_bytes(_build_shapes(config), MAX_SIZE, "no known model takes a tenth of that")


def _build_shapes(
    config: ModelConfig, wanted: type[SegmentationModel] = SegmentationModel
) -> SegmentationModel:
    with torch.device("meta"):
        return build_model(config, wanted)


def _check_bytes(shapes: nn.Module, limit: int, reason: str) -> None:
    needed = sum(entry.nbytes for entry in (*shapes.parameters(), *shapes.buffers()))
    if needed > limit:
        raise ConfigError(f"model: its sizes need {needed:,} bytes of memory, but {reason}")


def _match_weights(
    checkpoint: Checkpoint, model: SegmentationModel, strict: bool, ignore_mismatched_sizes: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the entries of a checkpoint that fit a model, and a report of the others, with a
    warning if there are any.

    Raises:
        WeightsMismatchError: entries do not fit, and the arguments do not allow it.
    """
    wanted = model.state_dict()
    found, report = checkpoint.match(wanted)
    if report.mismatched and not ignore_mismatched_sizes:
        raise WeightsMismatchError(
            report, "ignore_mismatched_sizes=True skips them, so that the model keeps its values"
        )
    if strict and (report.missing or report.unexpected):
        raise WeightsMismatchError(report, "strict=False loads the entries that fit")
    if report.missing or report.unexpected or report.mismatched:
        warnings.warn(str(report), stacklevel=3)
    before, now = checkpoint.config.num_classes, model.num_classes
    # Integers are counters of BatchNorm, which nothing needs.
    not_loaded = [x for name, x in wanted.items() if name not in found and x.is_floating_point()]
    # A class head has one row per class, and possibly one more for "no object".
    rows = ((now,), (now + 1,))
    if before is not None and before != now and all(x.shape[:1] in rows for x in not_loaded):
        report = replace(report, class_head=(before, now))
    return found, report


def _check_images(pixel_values: Tensor, channels: int) -> None:
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(f"pixel_values must be [B, {channels}, H, W], got shape {list(shape)}")
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values must be normalised floating-point images, got {pixel_values.dtype}"
        )
    if min(shape[2:]) < STRIDES[-1]:
        raise ValueError(
            f"pixel_values must have at least {STRIDES[-1]} rows and columns, got {list(shape)}"
        )
