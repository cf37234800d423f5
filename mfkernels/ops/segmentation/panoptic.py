"""Panoptic inference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import native_problem, result_dtype, without_autocast
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.segmentation import reference
from mfkernels.ops.segmentation.views import (
    CheckedView,
    SegmentationView,
    Size,
    Sizes,
    check_things,
    check_view,
)
from mfkernels.scalars import as_number

PAINTS = ("maskformer", "mask2former")

Panoptic = tuple[Tensor, list[dict[str, Any]]]
"""The map of an image and the description of its segments."""


@served_by_pytorch_where_kernels_fail("panoptic_owners")
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
) -> list[Panoptic]:
    """Make panoptic maps by the rules of the official code (MaskFormer, §3.4).

    A query is kept if its best class is not "no object" and has a probability (the score) above
    `object_mask_threshold`. Each pixel belongs to the kept query with the largest
    score · sigmoid(mask logit). In query order, each kept query becomes a segment, unless it owns
    no pixel, its mask is nowhere at least 0.5, or the number of pixels it owns, divided by the
    number of pixels where its mask is at least 0.5, is below `overlap_threshold`. Stuff queries of
    one class share one segment. Native kernels hold no masks in memory and copy to the host once.

    Args:
        class_logits: `[B, Q, K+1]`, any floating-point dtype; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of all results in pixels, or one `(H_b, W_b)` per image.
        thing_classes: the classes with one segment per object; all others are stuff.
        object_mask_threshold: the score of a kept query must be above this.
        overlap_threshold: the smallest visible fraction of a segment.
        input_size: `(H, W)` of the padded network input in pixels. None: `size` if that is a single
            pair, otherwise `(4h, 4w)`.
        image_sizes: for each image, the `(H, W)` of the part of the input that it fills, from the
            top left. None: the whole input.
        paint: `"maskformer"` paints all pixels that a query owns. `"mask2former"` paints only those
            where its mask is at least 0.5, and drops a query that has none.

    Returns:
        For each image, the map `[H_b, W_b]` int32 of segment ids (1, 2, …; 0: void) and a list with
        one dict per segment: `id`, `isthing`, `category_id` (class index) and `score` (class
        probability of its first query).

    Raises:
        TypeError, ValueError: a dtype, shape, device, size, class, threshold or `paint` is wrong.
    """
    view = check_view(
        SegmentationView(class_logits, mask_embed, pixel_features, input_size, image_sizes), size
    )
    things = check_things(thing_classes, class_logits.shape[-1] - 1)
    if paint not in PAINTS:
        raise ValueError(f"paint must be one of {', '.join(map(repr, PAINTS))}, got {paint!r}")
    options = (
        as_number("object_mask_threshold", object_mask_threshold),
        as_number("overlap_threshold", overlap_threshold),
        paint == "mask2former",
    )
    device, images = mask_embed.device, range(len(view.sizes.results))
    with without_autocast(device):
        problem = native_problem(*view.tensors)
        if backend.select("panoptic_owners", device, problem) != "native":
            return [_reference_map(view, image, things, *options) for image in images]
        per_class = [label in things for label in range(class_logits.shape[-1])]
        is_thing = torch.tensor(per_class, device="cpu").to(device)
        found = [_native_map(view, image, is_thing, *options) for image in images]
        tables = torch.stack([table for _, table in found]).tolist() if found else []
        return [(owners, _infos(table)) for (owners, _), table in zip(found, tables, strict=True)]


def _reference_map(
    view: CheckedView,
    image: int,
    things: frozenset[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    confident_only: bool,
) -> Panoptic:
    return reference.panoptic_map(
        view.class_logits[image],
        view.logits(image),
        input_size=view.sizes.input,
        image_size=view.sizes.images[image],
        size=view.sizes.results[image],
        thing_classes=things,
        object_mask_threshold=object_mask_threshold,
        overlap_threshold=overlap_threshold,
        confident_only=confident_only,
    )


def _native_map(
    view: CheckedView,
    image: int,
    is_thing: Tensor,
    object_mask_threshold: float,
    overlap_threshold: float,
    confident_only: bool,
) -> tuple[Tensor, Tensor]:
    """The panoptic map of an image, and the table `[4, Q]` of its segments for `_infos`."""
    probability = view.class_logits[image].to(result_dtype(*view.tensors)).softmax(-1)
    scores, labels = probability.max(-1)
    kept = (labels != probability.shape[-1] - 1) & (scores > object_mask_threshold)
    sides, (height, width) = view.sides(image), view.sizes.results[image]
    owners, counts = torch.ops.mfkernels.panoptic_owners(
        scores=torch.where(kept, scores, -1),
        mask_embed=view.predictions.embed[0, image],
        pixel_features=view.features(image),
        padded_height=sides.padded_height,
        padded_width=sides.padded_width,
        image_height=sides.image_height,
        image_width=sides.image_width,
        height=height,
        width=width,
        confident_only=confident_only,
    )
    return _segments(owners, counts, scores, labels, kept, is_thing, overlap_threshold)


def _segments(
    owners: Tensor,
    counts: Tensor,
    scores: Tensor,
    labels: Tensor,
    kept: Tensor,
    things: Tensor,
    overlap_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Decide on the device which queries become segments.

    Returns the panoptic map, and a table `[4, Q]` float64 whose rows `_infos` describes.
    """
    owned, confident, painted = counts.unbind(1)
    segment = kept & (confident > 0) & (painted > 0)
    segment &= ~(owned.double() / confident < overlap_threshold)
    is_thing = things[labels]
    # A stuff query joins the first segment of its class.
    order = torch.arange(len(labels), device=labels.device)
    same = (labels[:, None] == labels) & (segment & ~is_thing)
    first = torch.where(is_thing, order, same.int().argmax(1))
    new = segment & (first == order)
    ids = torch.where(segment, new.cumsum(0)[first], 0)
    table = torch.cat((ids.new_zeros(1), ids)).int()
    panoptic = table.index_select(0, (owners + 1).flatten()).view_as(owners)
    return panoptic, torch.stack((torch.where(new, ids, 0), is_thing, labels, scores.double()))


def _infos(table: list[list[float]]) -> list[dict[str, Any]]:
    """Describe each segment, from a table of ids (0: none), thing or stuff, classes and scores."""
    return [
        {"id": int(index), "isthing": bool(thing), "category_id": int(label), "score": score}
        for index, thing, label, score in zip(*table, strict=True)
        if index > 0
    ]
