"""From model outputs to label maps, whatever the architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

import mfkernels
from maskformer.config import EvalConfig

Outputs = Mapping[str, Tensor]
Size = tuple[int, int]


def semantic_maps(
    outputs: Outputs,
    *,
    input_size: Size,
    image_sizes: Sequence[Size],
    sizes: Sequence[Size],
    resize_logits: bool = False,
) -> list[Tensor]:
    """Class of every pixel of every image, int64 `[H_b, W_b]` (paper §3.4, semantic inference).

    Args:
        outputs: of `MaskFormer` or a per-pixel baseline; the last layer counts.
        input_size: padded size of the network input.
        image_sizes: size of each image inside the input.
        sizes: size wanted for each label map, usually the original image's.
        resize_logits: which of the official orders, see `mfkernels.semantic_segmentation`.
    """
    if "pixel_logits" in outputs:
        return _per_pixel_maps(outputs["pixel_logits"][-1], input_size, image_sizes, sizes)
    maps = mfkernels.semantic_segmentation(
        outputs["class_logits"][-1],
        outputs["mask_embed"][-1],
        outputs["pixel_features"],
        list(sizes),
        input_size=input_size,
        image_sizes=list(image_sizes),
        resize_logits=resize_logits,
    )
    return list(maps)


def panoptic_maps(
    outputs: Outputs,
    *,
    input_size: Size,
    image_sizes: Sequence[Size],
    sizes: Sequence[Size],
    thing_classes: Sequence[int],
    config: EvalConfig,
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """Segment of every pixel, int32 `[H_b, W_b]`, and what each segment is (paper §3.4, general
    inference).

    A per-pixel model has no instances: each class present is one segment.
    """
    if "pixel_logits" in outputs:
        maps = semantic_maps(outputs, input_size=input_size, image_sizes=image_sizes, sizes=sizes)
        return [_segments_from_classes(classes, set(thing_classes)) for classes in maps]
    return mfkernels.panoptic_segmentation(
        outputs["class_logits"][-1],
        outputs["mask_embed"][-1],
        outputs["pixel_features"],
        list(sizes),
        thing_classes=thing_classes,
        object_mask_threshold=config.object_mask_threshold,
        overlap_threshold=config.overlap_threshold,
        input_size=input_size,
        image_sizes=list(image_sizes),
    )


def _per_pixel_maps(
    logits: Tensor, input_size: Size, image_sizes: Sequence[Size], sizes: Sequence[Size]
) -> list[Tensor]:
    full = _resize(logits.float(), input_size)
    maps = []
    for scores, (height, width), size in zip(full, image_sizes, sizes, strict=True):
        maps.append(_resize(scores[None, :, :height, :width], size)[0].argmax(dim=0))
    return maps


def _resize(images: Tensor, size: Size) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _segments_from_classes(
    classes: Tensor, things: set[int]
) -> tuple[Tensor, list[dict[str, Any]]]:
    present, inverse = classes.unique(return_inverse=True)
    segments = [
        {"id": index, "isthing": label in things, "category_id": label, "score": 1.0}
        for index, label in enumerate(present.tolist(), start=1)
    ]
    return (inverse + 1).int(), segments
