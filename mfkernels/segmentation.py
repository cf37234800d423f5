"""Semantic and panoptic inference from class logits and factored masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.mask_logits import Masks, check_device, check_floating, check_masks
from mfkernels.reference import segmentation as reference
from mfkernels.reference.mask_logits import at_least_float32, logits_of_image

Size = tuple[int, int]
"""Height, width in pixels."""
Sizes = Size | Sequence[Size]

PAINTS = ("maskformer", "mask2former")


class _Sizes(NamedTuple):
    input: Size
    images: list[Size]
    results: list[Size]
    stacked: bool


@overload
def semantic_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    input_size: Size | None = None,
    image_sizes: Sequence[Size] | None = None,
    resize_logits: bool = False,
    return_scores: Literal[False] = False,
) -> Tensor | list[Tensor]: ...


@overload
def semantic_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    input_size: Size | None = None,
    image_sizes: Sequence[Size] | None = None,
    resize_logits: bool = False,
    return_scores: Literal[True],
) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]: ...


@torch.no_grad()
def semantic_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    input_size: Size | None = None,
    image_sizes: Sequence[Size] | None = None,
    resize_logits: bool = False,
    return_scores: bool = False,
) -> Tensor | list[Tensor] | tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """The best class of every pixel: `argmax_k Σ_q softmax(class_logits)[q, k] · sigmoid(mask)[q]`.

    Semantic inference of MaskFormer (§3.4). Mask logits are upsampled bilinearly to the padded
    network input and scored there; the scores are cropped to the image and resized to `size`. "No
    object" is never an answer. Computed in float32 (float64 if an input is).

    Args:
        class_logits: `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of every result, or one `(H_b, W_b)` an image.
        input_size: the padded network input. None: `size` if that is a single pair, else
            `(4h, 4w)`.
        image_sizes: the part of the input that each image fills, from the top left. None: all of
            it.
        resize_logits: crop and resize the logits instead of the scores (slower; official with
            panoptic models).
        return_scores: also return the scores.

    Returns:
        Class indices, int64: `[B, H, W]`, or a list of `[H_b, W_b]` where `size` is one pair an
        image. With `return_scores` a pair: those, and the scores `[B, K, H, W]` or a list of
        `[K, H_b, W_b]`.

    Raises:
        TypeError, ValueError: a dtype, shape, device or size does not fit.
    """
    masks = _check(class_logits, mask_embed, pixel_features)
    sizes = _check_sizes(masks, size, input_size, image_sizes)
    backend.select("segmentation", mask_embed.device)
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    with torch.autocast(mask_embed.device.type, enabled=False):
        for image, (image_size, result_size) in enumerate(
            zip(sizes.images, sizes.results, strict=True)
        ):
            image_scores = reference.semantic_scores(
                at_least_float32(class_logits[image]),
                _logits(masks, image),
                input_size=sizes.input,
                image_size=image_size,
                size=result_size,
                resize_logits=resize_logits,
            )
            labels.append(image_scores.argmax(0))
            if return_scores:
                scores.append(image_scores)
    if not sizes.stacked:
        return (labels, scores) if return_scores else labels
    stacked = torch.stack(labels)
    return (stacked, torch.stack(scores)) if return_scores else stacked


@torch.no_grad()
def panoptic_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    thing_classes: Collection[int],
    object_mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    input_size: Size | None = None,
    image_sizes: Sequence[Size] | None = None,
    paint: Literal["maskformer", "mask2former"] = "maskformer",
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """Panoptic maps by the official rules (MaskFormer, §3.4).

    Queries whose best class is real and scores more than `object_mask_threshold` are kept. Each
    pixel belongs to the kept query with the largest score · sigmoid(mask). In query order, a query
    becomes a segment unless it owns no pixel, its mask is nowhere at least 0.5, or the pixels it
    owns are fewer than `overlap_threshold` of those where its mask is at least 0.5. Stuff of one
    class shares one segment.

    Args:
        class_logits: `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of every result, or one `(H_b, W_b)` an image.
        thing_classes: the classes whose segments are told apart; all others are stuff.
        object_mask_threshold: strict lower bound of a kept query's class probability.
        overlap_threshold: lower bound of a segment's visible part.
        input_size: the padded network input. None: `size` if that is a single pair, else
            `(4h, 4w)`.
        image_sizes: the part of the input that each image fills, from the top left. None: all of
            it.
        paint: `"maskformer"` paints every pixel that a query owns; `"mask2former"` only those where
            its mask is at least 0.5, and drops a query that has none.

    Returns:
        Per image the map `[H_b, W_b]` int32 of segment ids (1, 2, …; 0: void) and a list with one
        dict a segment: `id`, `isthing`, `category_id` (class index), `score` (class probability of
        its first query).

    Raises:
        TypeError, ValueError: a dtype, shape, device, size, class or `paint` does not fit.
    """
    masks = _check(class_logits, mask_embed, pixel_features)
    sizes = _check_sizes(masks, size, input_size, image_sizes)
    classes = class_logits.shape[-1] - 1
    things = frozenset(int(thing) for thing in thing_classes)
    if any(not 0 <= thing < classes for thing in things):
        raise ValueError(f"thing_classes must be in 0..{classes - 1}, got {sorted(things)}")
    if paint not in PAINTS:
        raise ValueError(f"paint must be one of {', '.join(map(repr, PAINTS))}, got {paint!r}")
    backend.select("segmentation", mask_embed.device)
    with torch.autocast(mask_embed.device.type, enabled=False):
        return [
            reference.panoptic_map(
                at_least_float32(class_logits[image]),
                _logits(masks, image),
                input_size=sizes.input,
                image_size=image_size,
                size=result_size,
                thing_classes=things,
                object_mask_threshold=object_mask_threshold,
                overlap_threshold=overlap_threshold,
                confident_only=paint == "mask2former",
            )
            for image, (image_size, result_size) in enumerate(
                zip(sizes.images, sizes.results, strict=True)
            )
        ]


def _check(class_logits: Tensor, mask_embed: Tensor, pixel_features: Tensor | None) -> Masks:
    masks = check_masks(mask_embed, pixel_features)
    if masks.had_layers:
        raise ValueError(
            "inference takes the final layer only, without a layer axis; "
            f"got mask_embed {list(mask_embed.shape)}"
        )
    check_floating("class_logits", class_logits)
    check_device("class_logits", class_logits, mask_embed.device)
    images, queries = mask_embed.shape[:2]
    if class_logits.shape[:-1] != (images, queries) or class_logits.shape[-1] < 2:
        raise ValueError(
            f"class_logits must be [{images}, {queries}, K+1] to fit the masks, "
            f"got {list(class_logits.shape)}"
        )
    return masks


def _logits(masks: Masks, image: int) -> Tensor:
    features = None if masks.features is None else masks.features[image]
    return logits_of_image(masks.embed[0, image], features)


def _check_sizes(
    masks: Masks, size: Sizes, input_size: Size | None, image_sizes: Sequence[Size] | None
) -> _Sizes:
    batch = masks.embed.shape[1]
    one = _as_size(size)
    results = [one] * batch if one is not None else _size_list("size", size, batch)
    if input_size is None:
        height, width = (masks.embed if masks.features is None else masks.features).shape[-2:]
        padded = one or (4 * height, 4 * width)
    else:
        padded = _size_list("input_size", [input_size], 1)[0]
    images = (
        [padded] * batch if image_sizes is None else _size_list("image_sizes", image_sizes, batch)
    )
    for image in images:
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(f"image_sizes must fit into the input {padded}, got {image}")
    return _Sizes(padded, images, results, stacked=one is not None)


def _size_list(name: str, sizes: Any, count: int) -> list[Size]:
    pairs = [_as_size(size) for size in sizes]
    good = [pair for pair in pairs if pair is not None]
    if len(good) != count or len(pairs) != count:
        raise ValueError(f"{name} must be {count} pairs of positive (height, width), got {sizes!r}")
    return good


def _as_size(size: Any) -> Size | None:
    """A pair of positive integers, or None for anything else."""
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None
