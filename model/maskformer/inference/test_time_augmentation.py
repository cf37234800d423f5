"""Test-time augmentation of semantic segmentation: multi-scale and mirrored views of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskformer.config.schema import Config
from maskformer.data import EvalTransform, Normalize
from maskformer.modeling.autocast import predict
from maskformer.modeling.base import SegmentationModel


@dataclass(frozen=True)
class AugmentedViews:
    """The sizes at which an image is predicted, each of them optionally also mirrored.

    Args:
        scales: sizes relative to `short_side`, or to the image if that is None.
        flip: also mirror each size left to right.
        short_side, max_side: those of evaluation without augmentation, in pixels.
        short_sides: sizes in pixels, in place of `scales`.
        longest_side: the largest long side of a view in pixels. None: no limit with
            `short_sides`, otherwise `max_side` times the largest scale.
        from_original: resize the original image. If False, resize the image that evaluation
            without augmentation uses, as the official code does.
    """

    scales: tuple[float, ...]
    flip: bool
    short_side: int | None
    max_side: int | None = None
    short_sides: tuple[int, ...] | None = None
    longest_side: int | None = None
    from_original: bool = False

    @classmethod
    def from_config(cls, config: Config) -> AugmentedViews:
        """Make the views of a recipe."""
        data, tta = config.data, config.eval.tta
        return cls(
            tta.scales,
            tta.flip,
            data.test_short_side,
            data.test_max_side,
            tta.short_sides,
            tta.max_side,
            tta.from_original,
        )

    def __call__(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield the views `[C, H', W']` of a uint8 image `[C, H, W]`, and if they are mirrored."""
        short_side = self.short_side or min(image.shape[-2:])
        sides = self.short_sides or [max(int(s * short_side + 0.5), 1) for s in self.scales]
        if not self.from_original:
            image = EvalTransform(self.short_side, self.max_side)(image)
        for side in sides:
            resized = EvalTransform(side, self._max_long_side())(image)
            yield resized, False
            if self.flip:
                yield resized.flip(-1), True

    def _max_long_side(self) -> int | None:
        """Return the largest long side of a view in pixels, or None for no limit."""
        if self.longest_side is not None or self.short_sides is not None:
            return self.longest_side
        if self.short_side is None or self.max_side is None:
            return None
        return int(max(self.scales) * self.max_side + 0.5)


def semantic_map_of_views(
    model: SegmentationModel,
    image: Tensor,
    views: AugmentedViews,
    device: torch.device,
    *,
    resize_logits: bool,
) -> Tensor:
    """Find the class of each pixel by the mean score over all views, as the official code does.

    Each view is a batch of its own, padded for its size. Its scores, not its logits, are mirrored
    back and averaged at the image's size.

    Args:
        model: the model on `device`, in evaluation mode.
        image: `[C, H, W]` uint8, not resized.
        views: makes the views.
        device: the device.
        resize_logits: as in `mfkernels.semantic_segmentation`.

    Returns:
        `[H, W]` int64.
    """
    normalize = Normalize.from_config(model.config)
    predictions: list[Any] = []
    for resized, flipped in views(image):
        pixel_values = normalize([resized]).to(device)
        outputs = predict(model, pixel_values)
        input_size = pixel_values.shape[-2], pixel_values.shape[-1]
        image_size = resized.shape[-2], resized.shape[-1]
        predictions.append(outputs.view(input_size, image_size, flipped=flipped))
    size = image.shape[-2], image.shape[-1]
    return outputs.average_views(predictions, size, resize_logits=resize_logits)
