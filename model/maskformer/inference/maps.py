"""From model outputs to label maps, segments and instances, whatever the architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import mfkernels
from maskformer.config.schema import EvalConfig
from maskformer.errors import UsageError

Outputs = Mapping[str, Tensor]
Size = tuple[int, int]

ELEMENTS_AT_ONCE = 2**22
"""Per-pixel models: scores held at a time, so that classes x height x width never exists."""


class View(NamedTuple):
    """What a model says about one image, as seen in one input.

    Attributes:
        outputs: of `MaskFormer` or a per-pixel baseline, for this image alone; of the masks, either
            the factors or `mask_logits`.
        input_size: padded size of the network input.
        image_size: size of the image inside the input.
        flipped: the image was mirrored left to right.
    """

    outputs: Outputs
    input_size: Size
    image_size: Size
    flipped: bool


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
        logits = outputs["pixel_logits"][-1]
        return [
            _best_class([_PixelView(scores, input_size, image_size, flipped=False)], size)
            for scores, image_size, size in zip(logits, image_sizes, sizes, strict=True)
        ]
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


def averaged_semantic_map(
    views: Sequence[View], size: Size, *, resize_logits: bool = False
) -> Tensor:
    """Class of every pixel of one image, int64 `[H, W]`, by the mean score over several views.

    Args:
        views: at least one; outputs hold a batch of one.
        size: of the result.
        resize_logits: which of the official orders, see `mfkernels.semantic_segmentation`.
    """
    if "pixel_logits" in views[0].outputs:
        return _best_class(
            [_PixelView(view.outputs["pixel_logits"][-1][0], *view[1:]) for view in views], size
        )
    dense = "mask_logits" in views[0].outputs
    return mfkernels.average_semantic_segmentation(
        [
            mfkernels.SegmentationView(
                class_logits=view.outputs["class_logits"][-1],
                mask_embed=view.outputs["mask_logits" if dense else "mask_embed"][-1],
                pixel_features=None if dense else view.outputs["pixel_features"],
                input_size=view.input_size,
                image_sizes=[view.image_size],
                flipped=view.flipped,
            )
            for view in views
        ],
        size,
        resize_logits=resize_logits,
    )[0]


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


def instances(
    outputs: Outputs,
    *,
    input_size: Size,
    image_sizes: Sequence[Size],
    sizes: Sequence[Size],
    thing_classes: Sequence[int],
) -> list[mfkernels.Instances]:
    """The objects of each image, see `mfkernels.instance_segmentation`.

    Raises:
        ValueError: a per-pixel model, which tells no objects apart, or no thing classes.
    """
    if "pixel_logits" in outputs:
        raise UsageError("instances need a model with masks, got a per-pixel one")
    if not thing_classes:
        raise UsageError("instances need thing classes, but the data set has none: see data.things")
    return mfkernels.instance_segmentation(
        outputs["class_logits"][-1],
        outputs["mask_embed"][-1],
        outputs["pixel_features"],
        list(sizes),
        thing_classes=thing_classes,
        input_size=input_size,
        image_sizes=list(image_sizes),
    )


class _PixelView(NamedTuple):
    logits: Tensor
    """`[K, h, w]`"""
    input_size: Size
    image_size: Size
    flipped: bool


def _best_class(views: Sequence[_PixelView], size: Size) -> Tensor:
    """`argmax_k` of the sum over the views of `[K, H, W]`, some classes at a time."""
    classes = len(views[0].logits)
    pixels = max(size[0] * size[1], *(view.input_size[0] * view.input_size[1] for view in views))
    step = max(ELEMENTS_AT_ONCE // pixels, 1)
    best = views[0].logits.new_full(size, -torch.inf, dtype=torch.float32)
    labels = torch.zeros(size, dtype=torch.int64, device=best.device)
    for start in range(0, classes, step):
        some = slice(start, start + step)
        scores = _pixel_scores(views[0], some, size)
        for view in views[1:]:
            scores = scores + _pixel_scores(view, some, size)
        top, label = scores.max(dim=0)
        better = top > best
        best = torch.where(better, top, best)
        labels = torch.where(better, label + start, labels)
    return labels


def _pixel_scores(view: _PixelView, classes: slice, size: Size) -> Tensor:
    height, width = view.image_size
    full = _resize(view.logits[None, classes].float(), view.input_size)
    scores = _resize(full[..., :height, :width], size)[0]
    return scores.flip(-1) if view.flipped else scores


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
