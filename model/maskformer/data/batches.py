"""Batches for training and evaluation: collated, normalised and padded images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskformer.config.schema import COARSEST_STRIDE, PIXEL_MEAN, PIXEL_STD, ModelConfig
from maskformer.data.sample import Sample
from mfkernels import SegmentTargets

PerChannel = tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """A batch for one forward pass of training.

    Attributes:
        pixel_values: `[B, C, H, W]` float32, normalised, then padded with zeros.
        targets: the ground-truth segments, padded to the same size with void.
        names: the names of the images.
        image_sizes: height and width of each image inside the padded input.
    """

    pixel_values: Tensor
    targets: SegmentTargets
    names: tuple[str, ...]
    image_sizes: tuple[tuple[int, int], ...] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return replace(
            self,
            pixel_values=self.pixel_values.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        return replace(
            self, pixel_values=self.pixel_values.pin_memory(), targets=self.targets.pin_memory()
        )


@dataclass(frozen=True)
class EvalBatch:
    """Resized images and their samples, which are not resized; see `ImageProcessor.batch`.

    Attributes:
        pixel_values: `[B, C, H, W]` float32, normalised, then padded with zeros.
        image_sizes: height and width of each image inside the padded input.
        input_sizes: height and width to which each image would be padded if it were alone.
        original_sizes: height and width of each image on disk, and of its ground truth.
        samples: the samples as the data set returns them, always on the CPU.
    """

    pixel_values: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    input_sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    samples: tuple[Sample, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EvalBatch:
        return replace(self, pixel_values=self.pixel_values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EvalBatch:
        return replace(self, pixel_values=self.pixel_values.pin_memory())


def join_batches(batches: Sequence[EvalBatch]) -> EvalBatch:
    """Concatenate batches whose inputs have the same size."""
    return EvalBatch(
        pixel_values=torch.cat([batch.pixel_values for batch in batches]),
        image_sizes=tuple(size for batch in batches for size in batch.image_sizes),
        input_sizes=tuple(size for batch in batches for size in batch.input_sizes),
        original_sizes=tuple(size for batch in batches for size in batch.original_sizes),
        samples=tuple(sample for batch in batches for sample in batch.samples),
    )


@dataclass(frozen=True)
class Normalize:
    """Normalise uint8 images and pad them to one network input.

    Args:
        mean, std: mean and standard deviation of each channel, in units of 0..255.
        size_divisibility: pad height and width to multiples of this. 0 pads to the size of the
            largest image only. The result has at least 32 rows and columns, the smallest input of
            a model.
    """

    mean: PerChannel = PIXEL_MEAN
    std: PerChannel = PIXEL_STD
    size_divisibility: int = 32

    @classmethod
    def from_config(cls, config: ModelConfig) -> Normalize:
        """Make the normalisation that the model of a recipe expects."""
        return cls(config.pixel_mean, config.pixel_std, config.size_divisibility)

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Convert images `[C, H_b, W_b]` uint8 to `[B, C, H, W]` float32.

        Images are padded with zeros at the right and bottom.
        """
        height, width = self.padded_size([(int(i.shape[-2]), int(i.shape[-1])) for i in images])
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        batch = images[0].new_empty(
            (len(images), len(self.mean), height, width), dtype=torch.float32
        )
        for padded, image in zip(batch, images, strict=True):
            rows, columns = image.shape[-2:]
            padded[:, rows:] = 0
            padded[:, :rows, columns:] = 0
            torch.sub(image, mean, out=padded[:, :rows, :columns]).div_(std)
        return batch

    def padded_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return the height and width to which a batch of images of these sizes is padded."""
        step = max(self.size_divisibility, 1)
        height, width = (max(*sides, COARSEST_STRIDE) for sides in zip(*sizes, strict=True))
        return -(-height // step) * step, -(-width // step) * step
