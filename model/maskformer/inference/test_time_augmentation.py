"""Test-time augmentation of semantic segmentation: several sizes of an image, and their mirror
images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskformer.config.schema import Config
from maskformer.data import EvalTransform, Normalize
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import as_outputs


@dataclass(frozen=True)
class AugmentedViews:
    """The sizes in which an image is predicted, each of them also mirrored if asked for.

    Args:
        scales: sizes in terms of `short_side`, or of the image where that is None.
        flip: also mirror each size left to right.
        short_side, max_side: those of plain evaluation; the largest scale stretches `max_side`.
    """

    scales: tuple[float, ...]
    flip: bool
    short_side: int | None
    max_side: int | None = None

    @classmethod
    def from_config(cls, config: Config) -> AugmentedViews:
        """The views of a recipe."""
        data = config.data
        tta = config.eval.tta
        return cls(tta.scales, tta.flip, data.test_short_side, data.test_max_side)

    def __call__(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """From `[C, H, W]` uint8, each size `[C, H', W']` uint8, and whether it is mirrored."""
        short_side = self.short_side or min(image.shape[-2:])
        bounded = self.short_side is not None and self.max_side is not None
        max_side = int(max(self.scales) * (self.max_side or 0) + 0.5) if bounded else None
        for scale in self.scales:
            resized = EvalTransform(max(int(scale * short_side + 0.5), 1), max_side)(image)
            yield resized, False
            if self.flip:
                yield resized.flip(-1), True


def semantic_map_of_views(
    model: SegmentationModel,
    image: Tensor,
    views: AugmentedViews,
    device: torch.device,
    *,
    resize_logits: bool,
) -> Tensor:
    """Class of every pixel by the mean score over all views (the official rule).

    Each view runs alone, padded as far as its own size needs; its scores, not its logits, are
    mirrored back and averaged at the image's size.

    Args:
        model: on `device`, in evaluation mode.
        image: `[C, H, W]` uint8, as it was read.
        resize_logits: as in `mfkernels.semantic_segmentation`.

    Returns:
        `[H, W]` int64.
    """
    normalize = Normalize.from_config(model.config)
    seen: list[Any] = []
    for resized, flipped in views(image):
        pixel_values = normalize([resized]).to(device)
        outputs = as_outputs(model(pixel_values))
        input_size = pixel_values.shape[-2], pixel_values.shape[-1]
        image_size = resized.shape[-2], resized.shape[-1]
        seen.append(outputs.view(input_size, image_size, flipped=flipped))
    size = image.shape[-2], image.shape[-1]
    return outputs.average_views(seen, size, resize_logits=resize_logits)
