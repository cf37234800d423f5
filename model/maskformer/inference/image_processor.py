"""Prepare images and convert outputs to maps, as in the authors' test pipeline."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskformer.config.load import load_config
from maskformer.config.schema import Config
from maskformer.config.schema.fields import MAX_DIVISIBILITY, MAX_LEVEL, MAX_SIDE
from maskformer.data import EvalBatch, EvalTransform, Normalize, Sample
from maskformer.data.image_files.depth import ValueScale
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.sample import naming
from maskformer.errors import ConfigError
from maskformer.modeling.outputs import Frames, as_outputs
from maskformer.system.documents import check, read_mapping, shown
from maskformer.system.paths import given_path
from maskformer.system.writing import write_json
from maskformer.weights.files import CONFIG_FILE, check_weight_file
from maskformer.weights.locate import RECIPE
from maskformer.weights.native import LIBRARY, read_config
from maskformer.weights.open import find
from maskformer.weights.preprocessor import (
    PREPROCESSOR_FILE,
    image_values,
    read_preprocessor,
    section_values,
)
from maskformer.weights.schemas import BILINEAR, PreprocessorPart, SizePart

OF_LABELS = ("do_reduce_labels", "reduce_labels", "ignore_index", "num_labels")
"""Keys of a `preprocessor_config.json` that are about label maps."""

ImageLike = str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor


class ProcessedImages(TypedDict):
    """A network input, and the sizes needed to resize its outputs to the original images."""

    pixel_values: Tensor
    """`[B, C, H, W]` float32, normalised, padded with zeros at the right and bottom."""
    image_sizes: list[tuple[int, int]]
    """Height and width of each resized image inside the input."""
    original_sizes: list[tuple[int, int]]
    """Height and width of each original image."""


@dataclass(frozen=True)
class ImageProcessor:
    """Resize (bilinearly with Pillow, in 8 bits), normalise and pad images.

    Images are padded to a multiple of `normalize.size_divisibility`, as in the published results;
    `transformers` stretches them to a multiple of 32 instead.

    Args:
        short_side: the length to which the short side is resized, in pixels. None: do not resize.
        max_side: the largest length of the long side; takes precedence over `short_side`. None: no
            limit.
        normalize: the mean, the standard deviation and the padding.
        reader: how files and Pillow images are converted to 8 bits, and the number of channels C.
        resize_logits: for semantic maps, resize mask logits instead of scores to the original size,
            as the official code does for panoptic models.
        of_labels: settings of `transformers` for label maps, such as `do_reduce_labels`. They are
            not used here, but are saved with the model.

    Raises:
        ValueError: a side, mean, standard deviation or padding is invalid.
    """

    short_side: int | None = 512
    max_side: int | None = 2048
    normalize: Normalize = field(default_factory=Normalize)
    reader: ImageReader = field(default_factory=ImageReader)
    resize_logits: bool = False
    of_labels: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, side in (("short_side", self.short_side), ("max_side", self.max_side)):
            if side is not None:
                _check_number(name, side, 1, MAX_SIDE, whole=True)
        normalize = self.normalize
        if not isinstance(normalize, Normalize):
            raise ValueError(f"normalize must be a Normalize, got {shown(normalize)}")
        for name, values, low in (
            ("mean", normalize.mean, -MAX_LEVEL),
            ("std", normalize.std, 1 / MAX_LEVEL),
        ):
            count = self.reader.num_channels
            if not isinstance(values, Sequence) or len(values) != count:
                raise ValueError(
                    f"normalize.{name} must be {count} numbers, one per channel, got "
                    f"{shown(values)}"
                )
            for value in values:
                _check_number(f"normalize.{name}", value, low, MAX_LEVEL, whole=False)
        step = normalize.size_divisibility
        _check_number("normalize.size_divisibility", step, 0, MAX_DIVISIBILITY, whole=True)

    @classmethod
    def from_config(cls, config: Config) -> ImageProcessor:
        """Make the processor that the evaluation of a recipe uses."""
        return cls(
            config.data.test_short_side,
            config.data.test_max_side,
            Normalize.from_config(config.model),
            ImageReader.from_config(config.data),
            config.eval.resize_logits,
        )

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> ImageProcessor:
        """Make the processor that the folder of a model describes; for a weight file, the default.

        Args:
            path_or_hub_id: as in `MaskFormer.from_pretrained`, or a folder that holds only
                `preprocessor_config.json`. A weight file is not opened.

        Raises:
            FileNotFoundError: the path does not exist, or the folder holds no model.
            HubError: the hub cannot be reached or has no such model; a `RuntimeError`.
            ConfigError: a file is damaged, or asks for something that this pipeline does not
                support, such as a fixed height and width; a `ValueError`.
            ValueError: the file is not a weight file.
        """
        path = find(path_or_hub_id)
        if path.is_file():
            check_weight_file(path)
            return cls()
        preprocessor = read_preprocessor(path)
        if preprocessor is not None:
            return _from_preprocessor(preprocessor, path / PREPROCESSOR_FILE)
        if (path / RECIPE).is_file():
            return cls.from_config(load_config(path / RECIPE))
        if (path / CONFIG_FILE).is_file():
            values = read_mapping(path / CONFIG_FILE)
            if values.get("library") == LIBRARY:
                config, _ = read_config(path, values)
                return cls(
                    normalize=Normalize.from_config(config),
                    reader=ImageReader(config.num_channels),
                )
            return cls(normalize=_normalize(section_values(values)))
        raise FileNotFoundError(
            f"{path} holds no checkpoint: expected {PREPROCESSOR_FILE}, {CONFIG_FILE}, a run, or "
            "one .pkl or .pth file"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`, which `transformers` also reads.

        Raises:
            OSError: the folder cannot be written.
        """
        normalize = self.normalize
        values: dict[str, Any] = {
            "image_processor_type": "MaskFormerImageProcessor",
            "do_resize": self.short_side is not None,
            "resample": BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [round(value / 255, 9) for value in normalize.mean],
            "image_std": [round(value / 255, 9) for value in normalize.std],
            "size_divisor": normalize.size_divisibility,
            **self.of_labels,
        }
        if self.reader != ImageReader():
            values["reader"] = {
                "channels": self.reader.channels,
                "value_range": self.reader.scale.value_range,
                "percentiles": self.reader.scale.percentiles,
                "exif_orientation": self.reader.orientation,
            }
        if self.resize_logits:
            values["resize_logits"] = True
        if self.short_side is not None:
            values["size"] = {"shortest_edge": self.short_side}
            if self.max_side is not None:
                values["size"]["longest_edge"] = self.max_side
        folder = given_path("folder", folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PREPROCESSOR_FILE, values, indent=2)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> ProcessedImages:
        """Make one network input of one or several images.

        Args:
            images: one or several of these: a file, the bytes of a file or a Pillow image (all
                are read by `reader`, which rotates them by their EXIF orientation), an array
                `[H, W, C]` uint8, or a tensor `[C, H, W]` uint8. C = 3 is RGB.

        Returns:
            A dict of `pixel_values`, float32 `[B, C, H, W]`: the resized images, normalised and
            padded with zeros at the right and bottom; `image_sizes`, (height, width) of each
            resized image; and `original_sizes`, (height, width) of each original image.

        Raises:
            TypeError: an argument is not an image.
            ValueError: there are no images, or one has a wrong shape or dtype.
            DatasetError: a file is not an image, or not of the kind that `reader` expects.
        """
        originals = self.read(images)
        resized = [self._resize(image) for image in originals]
        return {
            "pixel_values": self.normalize(resized),
            "image_sizes": [_size(image) for image in resized],
            "original_sizes": [_size(image) for image in originals],
        }

    def read(self, images: ImageLike | Sequence[ImageLike]) -> list[Tensor]:
        """Read images without resizing or normalising them: `[C, H, W]` uint8 each.

        Args:
            images: as in `__call__`.

        Raises:
            TypeError, ValueError, DatasetError: as in `__call__`.
        """
        return [to_tensor(image, self.reader) for image in as_list(images)]

    def batch(self, samples: Sequence[Sample]) -> EvalBatch:
        """Make one network input of samples of a data set.

        Raises:
            DatasetError: an image is so narrow that its resized form would not fit into memory.
        """
        resized = []
        for sample in samples:
            with naming(sample.name):
                resized.append(self._resize(sample.image))
        sizes = tuple(_size(image) for image in resized)
        return EvalBatch(
            pixel_values=self.normalize(resized),
            image_sizes=sizes,
            input_sizes=tuple(self.normalize.padded_size([size]) for size in sizes),
            original_sizes=tuple(sample.size for sample in samples),
            samples=tuple(samples),
        )

    def _resize(self, image: Tensor) -> Tensor:
        return EvalTransform(self.short_side, self.max_side)(image)

    def post_process_semantic(
        self, outputs: Mapping[str, Tensor], processed: ProcessedImages
    ) -> list[Tensor]:
        """Find the class of each pixel of the original images (paper §3.4).

        Args:
            outputs: the model's outputs for `processed["pixel_values"]`.
            processed: the result of calling the processor.

        Returns:
            For each image, a map of class indices `[H_b, W_b]`, int64.
        """
        frames = _frames(processed)
        return as_outputs(outputs).semantic(frames, resize_logits=self.resize_logits)

    def post_process_panoptic(
        self,
        outputs: Mapping[str, Tensor],
        processed: ProcessedImages,
        thing_classes: Sequence[int],
        *,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> list[tuple[Tensor, list[dict[str, Any]]]]:
        """Find the segments of the original images (paper §3.4).

        Args:
            outputs, processed: as in `post_process_semantic`.
            thing_classes, object_mask_threshold, overlap_threshold: see
                `mfkernels.panoptic_segmentation`.

        Returns:
            For each image, a map of segment ids `[H_b, W_b]`, int32, and a list with a dict per
            segment; see `mfkernels.panoptic_segmentation`.
        """
        return as_outputs(outputs).panoptic(
            _frames(processed),
            thing_classes,
            object_mask_threshold=object_mask_threshold,
            overlap_threshold=overlap_threshold,
        )


def _frames(processed: ProcessedImages) -> Frames:
    height, width = processed["pixel_values"].shape[-2:]
    return Frames((int(height), int(width)), processed["image_sizes"], processed["original_sizes"])


def as_list(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    """Return a sequence of images, also for a single image.

    Raises:
        ValueError: the sequence is empty.
    """
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        return [images]
    if not images:
        raise ValueError("images: expected at least one, got none")
    return cast(Sequence[ImageLike], images)  # mypy counts bytearray as bytes


def to_tensor(image: ImageLike, reader: ImageReader) -> Tensor:
    if isinstance(image, str):
        image = given_path("images", image)
    if isinstance(image, Path | bytes | Image.Image):
        return reader(image)
    channels = reader.num_channels
    if isinstance(image, np.ndarray):
        form, of_channels = f"[H, W, {channels}]", image.shape[-1:]
    elif isinstance(image, Tensor):
        form, of_channels = f"[{channels}, H, W]", image.shape[:1]
    else:
        raise TypeError(
            "images: each must be a path, the bytes of a file, a Pillow image, an array or a "
            f"tensor, got {type(image).__name__}"
        )
    of_bytes = str(image.dtype).removeprefix("torch.") == "uint8"
    if not of_bytes or image.ndim != 3 or tuple(of_channels) != (channels,) or 0 in image.shape:
        kind = "uint8 RGB" if channels == 3 else "uint8"
        raise ValueError(
            f"images: each must be {form} {kind}, got {list(image.shape)} {image.dtype}"
        )
    if isinstance(image, Tensor):
        return image
    # Copy, because PyTorch supports neither negative strides nor read-only arrays.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


def _from_preprocessor(values: Mapping[str, Any], file: Path) -> ImageProcessor:
    try:
        part = check(PreprocessorPart, values)
        # Old versions of transformers write a single number.
        size = SizePart(shortest_edge=part.size) if isinstance(part.size, int) else part.size
        if size.shortest_edge is None and part.do_resize:
            raise ConfigError(
                f"it asks for the size {shown(values.get('size'))}; this pipeline keeps the aspect "
                "ratio and needs 'shortest_edge'"
            )
        if part.do_resize and part.resample not in (None, BILINEAR):
            raise ConfigError(
                f"it asks for resample {part.resample}; this pipeline resizes bilinearly, which is "
                f"{BILINEAR}"
            )
        if part.pad_size is not None:
            raise ConfigError(
                f"it asks for pad_size {shown(part.pad_size)}; this pipeline pads to multiples of "
                "size_divisor"
            )
        reader = part.reader
        return ImageProcessor(
            short_side=size.shortest_edge if part.do_resize else None,
            max_side=(size.longest_edge or part.max_size) if part.do_resize else None,
            normalize=_normalize(image_values(values)),
            reader=ImageReader(
                reader.channels,
                ValueScale(reader.value_range, reader.percentiles),
                reader.exif_orientation,
            ),
            resize_logits=part.resize_logits,
            of_labels={name: values[name] for name in OF_LABELS if name in values},
        )
    except ValueError as error:
        raise ConfigError(f"{file} is not supported: {error}") from error


def _normalize(values: Mapping[str, Any]) -> Normalize:
    """Make the normalisation from values with the keys of a recipe's model section, or defaults."""
    default = Normalize()
    return Normalize(
        values.get("pixel_mean", default.mean),
        values.get("pixel_std", default.std),
        values.get("size_divisibility", default.size_divisibility),
    )


def _check_number(name: str, value: Any, low: float, high: float, whole: bool) -> None:
    """Check that a value is a finite number from `low` to `high`, and neither a bool nor text."""
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real)
    if not is_number or isinstance(value, bool) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind} from {low:g} to {high:g}, got {shown(value)}")
