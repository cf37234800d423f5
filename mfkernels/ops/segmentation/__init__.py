"""Semantic, panoptic and instance inference from class logits and factored masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

import mfkernels.ops.segmentation.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import (
    MaskPredictions,
    check_device,
    check_floating,
    check_predictions,
    native_problem,
    result_dtype,
)
from mfkernels.ops.common.logits import logits_of_image
from mfkernels.ops.segmentation import reference

Size = tuple[int, int]
"""Height, width in pixels."""
Sizes = Size | Sequence[Size]
Labels = Tensor | list[Tensor]
LabelsAndScores = tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]

PAINTS = ("maskformer", "mask2former")

_CHUNK_PIXELS = 1 << 22
"""Pixels of the masks that instance inference holds as logits at a time."""


class SegmentationView(NamedTuple):
    """Predictions for a batch of images, shown to the network at some scale, mirrored or not.

    The fields are the arguments of `semantic_segmentation` of the same names.
    """

    class_logits: Tensor
    """`[B, Q, K+1]`; index K is "no object"."""
    mask_embed: Tensor
    """`[B, Q, C]`; or mask logits `[B, Q, h, w]`."""
    pixel_features: Tensor | None
    """`[B, C, h, w]`; None for mask logits."""
    input_size: Size | None = None
    image_sizes: Sequence[Size] | None = None
    flipped: bool = False
    """The images were mirrored left to right; their results are mirrored back."""


class Instances(NamedTuple):
    """The instances of one image, by falling class probability."""

    masks: Tensor
    """`[N, H, W]` bool."""
    labels: Tensor
    """`[N]` int64 class indices."""
    scores: Tensor
    """`[N]`: class probability times the mean sigmoid inside the mask."""
    boxes: Tensor
    """`[N, 4]` float32: left, top, right, bottom of the mask in pixels, the last two exclusive;
    zeros for an empty mask."""


class _ViewSizes(NamedTuple):
    """Of the network input, of the images inside it, and of the results."""

    input: Size
    images: list[Size]
    results: list[Size]
    stacked: bool


class _CheckedView(NamedTuple):
    """A view whose tensors and sizes fit together."""

    class_logits: Tensor
    predictions: MaskPredictions
    sizes: _ViewSizes
    flipped: bool

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.class_logits, self.predictions.embed, self.predictions.features

    def logits(self, image: int) -> Tensor:
        """`[Q, h, w]`, at least float32."""
        return logits_of_image(self.predictions.embed[0, image], self.features(image))

    def features(self, image: int) -> Tensor | None:
        return None if self.predictions.features is None else self.predictions.features[image]

    def sides(self, image: int) -> tuple[int, int, int, int]:
        """Heights and widths of the padded input and of the image, as the operators take them."""
        return *self.sizes.input, *self.sizes.images[image]


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
) -> Labels: ...


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
) -> LabelsAndScores: ...


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
) -> Labels | LabelsAndScores:
    """The best class of every pixel: `argmax_k Σ_q softmax(class_logits)[q, k] · sigmoid(mask)[q]`.

    Semantic inference of MaskFormer (§3.4). Mask logits are upsampled bilinearly to the padded
    network input and scored there; the scores are cropped to the image and resized to `size`. "No
    object" is never an answer. Computed in float32 (float64 if an input is). Native kernels hold
    neither masks nor scores in memory.

    Args:
        class_logits: `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of every result, or one `(H_b, W_b)` per image.
        input_size: the padded network input. None: `size` if that is a single pair, else
            `(4h, 4w)`.
        image_sizes: the part of the input that each image fills, from the top left. None: all of
            it.
        resize_logits: crop and resize the logits instead of the scores (official with panoptic
            models).
        return_scores: also return the scores.

    Returns:
        Class indices, int64: `[B, H, W]`, or a list of `[H_b, W_b]` where `size` is one pair
        per image. With `return_scores` a pair: those, and the scores `[B, K, H, W]` or a list of
        `[K, H_b, W_b]`.

    Raises:
        TypeError, ValueError: a dtype, shape, device or size does not fit.
    """
    view = SegmentationView(class_logits, mask_embed, pixel_features, input_size, image_sizes)
    return _semantic([view], size, resize_logits, return_scores)


@overload
def average_semantic_segmentation(
    views: Sequence[SegmentationView],
    size: Sizes,
    *,
    resize_logits: bool = False,
    return_scores: Literal[False] = False,
) -> Labels: ...


@overload
def average_semantic_segmentation(
    views: Sequence[SegmentationView],
    size: Sizes,
    *,
    resize_logits: bool = False,
    return_scores: Literal[True],
) -> LabelsAndScores: ...


def average_semantic_segmentation(
    views: Sequence[SegmentationView],
    size: Sizes,
    *,
    resize_logits: bool = False,
    return_scores: bool = False,
) -> Labels | LabelsAndScores:
    """The best class of every pixel by the scores averaged over views: test-time augmentation.

    MaskFormer's appendix A and the official `SemanticSegmentorWithTTA`: scores of each view at
    `size`, mirrored back where the view was mirrored, then their mean.

    Args:
        views: predictions for the same B images, with any number of queries and any resolution.
            Either all have pixel features or none.
        size, resize_logits, return_scores: as in `semantic_segmentation`.

    Returns:
        As `semantic_segmentation`.

    Raises:
        TypeError, ValueError: there is no view, views differ in B, K or device, or a dtype, shape,
            device or size does not fit.
    """
    return _semantic(views, size, resize_logits, return_scores)


@torch.no_grad()
def _semantic(
    views: Sequence[SegmentationView], size: Sizes, resize_logits: bool, return_scores: bool
) -> Labels | LabelsAndScores:
    checked = _check_views(views, size)
    device = checked[0].class_logits.device
    tensors = [tensor for view in checked for tensor in view.tensors]
    sizes = checked[0].sizes
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    with torch.autocast(device.type, enabled=False):
        native = backend.select("semantic_segmentation", device, native_problem(*tensors))
        dtype = result_dtype(*tensors)
        # Scores are linear in the probabilities: dividing these gives their mean.
        probability = [
            view.class_logits.to(dtype).softmax(-1)[..., :-1] / len(checked) for view in checked
        ]
        for image, result_size in enumerate(sizes.results):
            if native == "native":
                features = [view.features(image) for view in checked]
                image_labels, image_scores = torch.ops.mfkernels.semantic_segmentation(
                    [of_view[image] for of_view in probability],
                    [view.predictions.embed[0, image] for view in checked],
                    [x for x in features if x is not None],
                    *zip(*(view.sides(image) for view in checked), strict=True),
                    [view.flipped for view in checked],
                    *result_size,
                    resize_logits,
                    return_scores,
                )
            else:
                image_scores = _mean_scores(checked, image, resize_logits)
                image_labels = image_scores.argmax(0)
            labels.append(image_labels)
            if return_scores:
                scores.append(image_scores)
    if not sizes.stacked:
        return (labels, scores) if return_scores else labels
    return (_stack(labels), _stack(scores)) if return_scores else _stack(labels)


def _mean_scores(views: list[_CheckedView], image: int, resize_logits: bool) -> Tensor:
    scores = [
        reference.semantic_scores(
            view.class_logits[image],
            view.logits(image),
            input_size=view.sizes.input,
            image_size=view.sizes.images[image],
            size=view.sizes.results[image],
            resize_logits=resize_logits,
            flipped=view.flipped,
        )
        for view in views
    ]
    return scores[0] if len(scores) == 1 else torch.stack(scores).mean(0)


def _stack(images: list[Tensor]) -> Tensor:
    """Without a copy of a single image."""
    return images[0][None] if len(images) == 1 else torch.stack(images)


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
    class shares one segment. Native kernels hold no masks in memory and copy to the host once
    per image.

    Args:
        class_logits: `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of every result, or one `(H_b, W_b)` per image.
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
        dict per segment: `id`, `isthing`, `category_id` (class index), `score` (class
        probability of its first query).

    Raises:
        TypeError, ValueError: a dtype, shape, device, size, class or `paint` does not fit.
    """
    view = _check_view(
        SegmentationView(class_logits, mask_embed, pixel_features, input_size, image_sizes), size
    )
    things = _check_things(thing_classes, class_logits.shape[-1] - 1)
    if paint not in PAINTS:
        raise ValueError(f"paint must be one of {', '.join(map(repr, PAINTS))}, got {paint!r}")
    confident_only = paint == "mask2former"
    device = mask_embed.device
    is_thing = torch.tensor([label in things for label in range(class_logits.shape[-1])])
    is_thing = is_thing.to(device)
    results = []
    with torch.autocast(device.type, enabled=False):
        native = backend.select("panoptic_owners", device, native_problem(*view.tensors))
        for image, result_size in enumerate(view.sizes.results):
            if native == "native":
                probability = class_logits[image].to(result_dtype(*view.tensors)).softmax(-1)
                scores, labels = probability.max(-1)
                kept = (labels != class_logits.shape[-1] - 1) & (scores > object_mask_threshold)
                owners, counts = torch.ops.mfkernels.panoptic_owners(
                    torch.where(kept, scores, -1),
                    view.predictions.embed[0, image],
                    view.features(image),
                    *view.sides(image),
                    *result_size,
                    confident_only,
                )
                results.append(
                    _segments(owners, counts, scores, labels, kept, is_thing, overlap_threshold)
                )
            else:
                results.append(
                    reference.panoptic_map(
                        class_logits[image],
                        view.logits(image),
                        input_size=view.sizes.input,
                        image_size=view.sizes.images[image],
                        size=result_size,
                        thing_classes=things,
                        object_mask_threshold=object_mask_threshold,
                        overlap_threshold=overlap_threshold,
                        confident_only=confident_only,
                    )
                )
    return results


def _segments(
    owners: Tensor,
    counts: Tensor,
    scores: Tensor,
    labels: Tensor,
    kept: Tensor,
    things: Tensor,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """What becomes a segment, decided on the device; one copy to the host."""
    owned, confident, painted = counts.unbind(1)
    segment = kept & (confident > 0) & (painted > 0)
    segment &= ~(owned.double() / confident < overlap_threshold)
    is_thing = things[labels]
    # Stuff joins the first segment of its class.
    order = torch.arange(len(labels), device=labels.device)
    same = (labels[:, None] == labels) & (segment & ~is_thing)
    first = torch.where(is_thing, order, same.int().argmax(1))
    new = segment & (first == order)
    ids = torch.where(segment, new.cumsum(0)[first], 0)
    table = torch.cat((ids.new_zeros(1), ids)).int()
    panoptic = table.index_select(0, (owners + 1).flatten()).view_as(owners)
    packed = torch.stack((torch.where(new, ids, 0), is_thing, labels, scores.double())).tolist()
    return panoptic, [
        {"id": int(index), "isthing": bool(thing), "category_id": int(label), "score": score}
        for index, thing, label, score in zip(*packed, strict=True)
        if index > 0
    ]


@torch.no_grad()
def instance_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    top_k: int = 100,
    thing_classes: Collection[int] | None = None,
    input_size: Size | None = None,
    image_sizes: Sequence[Size] | None = None,
) -> list[Instances]:
    """The `top_k` most probable pairs of query and class, each with the query's mask.

    Instance inference of Mask2Former (official code; it is not in the papers): a mask is where the
    resized logit is positive, and the class probability is multiplied by the mean sigmoid inside.
    Masks are computed a chunk at a time; this is plain PyTorch with every backend.

    Args:
        class_logits: `[B, Q, K+1]`; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of every result, or one `(H_b, W_b)` per image.
        top_k: the most instances of an image. A query may appear with several classes.
        thing_classes: keep only these classes, of the `top_k`. None: all.
        input_size, image_sizes: as in `semantic_segmentation`. Logits are cropped and resized.

    Returns:
        The instances of each image; see `Instances`.

    Raises:
        TypeError, ValueError: a dtype, shape, device, size, class or `top_k` does not fit.
    """
    view = _check_view(
        SegmentationView(class_logits, mask_embed, pixel_features, input_size, image_sizes), size
    )
    classes = class_logits.shape[-1] - 1
    things = None if thing_classes is None else _check_things(thing_classes, classes)
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    results = []
    with torch.autocast(mask_embed.device.type, enabled=False):
        probability = class_logits.to(result_dtype(*view.tensors)).softmax(-1)[..., :-1].flatten(1)
        for image, of_pairs in enumerate(probability):
            scores, pairs = of_pairs.topk(min(top_k, len(of_pairs)))
            if things is not None:
                wanted = torch.tensor(sorted(things), dtype=pairs.dtype, device=pairs.device)
                keep = torch.isin(pairs % classes, wanted)
                scores, pairs = scores[keep], pairs[keep]
            masks, means = _instance_masks(view, image, pairs // classes)
            results.append(Instances(masks, pairs % classes, scores * means, _boxes(masks)))
    return results


def _instance_masks(view: _CheckedView, image: int, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Masks `[N, H, W]` of `queries [N]` and the mean sigmoid inside each mask."""
    sizes = view.sizes
    size = sizes.results[image]
    masks = torch.empty((len(queries), *size), dtype=torch.bool, device=queries.device)
    means = queries.new_empty(len(queries), dtype=result_dtype(*view.tensors))
    at_a_time = max(1, _CHUNK_PIXELS // max(sizes.input[0] * sizes.input[1], size[0] * size[1]))
    for start in range(0, len(queries), at_a_time):
        chunk = slice(start, start + at_a_time)
        rows = view.predictions.embed[0, image, queries[chunk]]
        logits = logits_of_image(rows, view.features(image))
        logits = reference.resize_twice(logits, sizes.input, sizes.images[image], size)
        inside = torch.gt(logits, 0, out=masks[chunk])
        total = (logits.sigmoid_() * inside).sum((1, 2))
        means[chunk] = total / (inside.sum((1, 2)) + 1e-6)
    return masks, means


def _boxes(masks: Tensor) -> Tensor:
    """The tightest boxes around masks."""
    ends = []
    for axis in (1, 2):  # over rows: left and right; over columns: top and bottom
        filled = masks.any(axis)
        first = filled.byte().argmax(1)
        last = filled.shape[1] - filled.flip(1).byte().argmax(1)
        ends.append((first, torch.where(filled.any(1), last, 0)))
    (left, right), (top, bottom) = ends
    return torch.stack((left, top, right, bottom), 1).float()


def _check_views(views: Sequence[SegmentationView], size: Sizes) -> list[_CheckedView]:
    checked = [_check_view(view, size) for view in views]
    if not checked:
        raise ValueError("views must hold at least one view")
    first = checked[0]
    for index, view in enumerate(checked):
        if view.class_logits.device != first.class_logits.device:
            raise ValueError(
                f"views must be on one device; the first is on {first.class_logits.device}, "
                f"view {index} on {view.class_logits.device}"
            )
        if view.class_logits.shape[::2] != first.class_logits.shape[::2]:
            raise ValueError(
                "views must agree in images and classes: class_logits of the first are "
                f"{list(first.class_logits.shape)}, of view {index} {list(view.class_logits.shape)}"
            )
        if (view.predictions.features is None) != (first.predictions.features is None):
            raise ValueError("either all views must have pixel_features or none")
    return checked


def _check_view(view: SegmentationView, size: Sizes) -> _CheckedView:
    if not isinstance(view, SegmentationView):
        raise TypeError(f"views must hold SegmentationView, got {type(view).__name__}")
    predictions = check_predictions(view.mask_embed, view.pixel_features)
    if predictions.had_layers:
        raise ValueError(
            "inference takes the final layer only, without a layer axis; "
            f"got mask_embed {list(view.mask_embed.shape)}"
        )
    class_logits = view.class_logits
    check_floating("class_logits", class_logits)
    check_device("class_logits", class_logits, view.mask_embed.device)
    images, queries = view.mask_embed.shape[:2]
    if images == 0:
        raise ValueError(
            f"expected at least one image, got mask_embed {list(view.mask_embed.shape)}"
        )
    if class_logits.shape[:-1] != (images, queries) or class_logits.shape[-1] < 2:
        raise ValueError(
            f"class_logits must be [{images}, {queries}, K+1] to fit the masks, "
            f"got {list(class_logits.shape)}"
        )
    sizes = _check_sizes(predictions, size, view.input_size, view.image_sizes)
    return _CheckedView(class_logits, predictions, sizes, view.flipped)


def _check_things(thing_classes: Collection[int], classes: int) -> frozenset[int]:
    things = frozenset(int(thing) for thing in thing_classes)
    if any(not 0 <= thing < classes for thing in things):
        raise ValueError(f"thing_classes must be in 0..{classes - 1}, got {sorted(things)}")
    return things


def _check_sizes(
    predictions: MaskPredictions,
    size: Sizes,
    input_size: Size | None,
    image_sizes: Sequence[Size] | None,
) -> _ViewSizes:
    batch = predictions.embed.shape[1]
    one = _as_size(size)
    results = [one] * batch if one is not None else _size_list("size", size, batch)
    if input_size is None:
        height, width = (
            predictions.embed if predictions.features is None else predictions.features
        ).shape[-2:]
        padded = one or (4 * height, 4 * width)
    else:
        padded = _size_list("input_size", [input_size], 1)[0]
    images = (
        [padded] * batch if image_sizes is None else _size_list("image_sizes", image_sizes, batch)
    )
    for image in images:
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(f"image_sizes must fit into the input {padded}, got {image}")
    return _ViewSizes(padded, images, results, stacked=one is not None)


def _size_list(name: str, sizes: Any, count: int) -> list[Size]:
    pairs = [_as_size(size) for size in sizes] if isinstance(sizes, Sequence) else []
    good = [pair for pair in pairs if pair is not None]
    if len(good) != count or len(pairs) != count:
        one = "one pair or " if name == "size" else ""
        raise ValueError(
            f"{name} must be {one}{count} pairs of positive (height, width), got {sizes!r}"
        )
    return good


def _as_size(size: Any) -> Size | None:
    """A pair of positive integers, or None for anything else."""
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None
