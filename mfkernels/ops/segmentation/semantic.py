"""Semantic inference of one view or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack, overload

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
    check_views,
)

Labels = Tensor | list[Tensor]
LabelsAndScores = tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]


class _Options(TypedDict, total=False):
    """The options of `semantic_segmentation` that do not change the type of its result."""

    input_size: Size | None
    image_sizes: Sequence[Size] | None
    resize_logits: bool


@overload
def semantic_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    return_scores: Literal[False] = False,
    **options: Unpack[_Options],
) -> Labels: ...


@overload
def semantic_segmentation(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    size: Sizes,
    *,
    return_scores: Literal[True],
    **options: Unpack[_Options],
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
    """Find the best class of each pixel: the semantic inference of MaskFormer (§3.4).

    The scores are `Σ_q softmax(class_logits)[q, k] · sigmoid(mask_logits)[q]`; "no object" is never
    chosen. The mask logits are upsampled bilinearly to the padded network input; the scores are
    computed there, cropped to the image and resized to `size`. Computed in float32 (float64 if an
    input is float64). Native kernels hold neither masks nor scores in memory.

    Args:
        class_logits: `[B, Q, K+1]`, any floating-point dtype; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of all results in pixels, or one `(H_b, W_b)` per image.
        input_size: `(H, W)` of the padded network input in pixels. None: `size` if that is a single
            pair, otherwise `(4h, 4w)`.
        image_sizes: for each image, the `(H, W)` of the part of the input that it fills, from the
            top left. None: the whole input.
        resize_logits: crop and resize the logits instead of the scores, as the official code does
            for panoptic models.
        return_scores: also return the scores.

    Returns:
        Class indices, int64: `[B, H, W]`, or a list of `[H_b, W_b]` if `size` is one pair per
        image. With `return_scores`, a pair of these and the scores, float32 or float64:
        `[B, K, H, W]`, or a list of `[K, H_b, W_b]`.

    Raises:
        TypeError, ValueError: a dtype, shape, device or size is wrong.
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
    """Find the best class of each pixel by the mean scores of views: test-time augmentation.

    As the official `SemanticSegmentorWithTTA` does, compute the scores of each view at `size`,
    mirror those of flipped views back, and average.

    Args:
        views: predictions for the same B images, with any number of queries and any resolution.
            Either all views have pixel features or none has.
        size, resize_logits, return_scores: as in `semantic_segmentation`.

    Returns:
        As `semantic_segmentation`.

    Raises:
        TypeError, ValueError: there is no view, the views differ in B, K or device, or a dtype,
            shape, device or size is wrong.
    """
    return _semantic(views, size, resize_logits, return_scores)


@served_by_pytorch_where_kernels_fail("semantic_segmentation")
@torch.no_grad()
def _semantic(
    views: Sequence[SegmentationView], size: Sizes, resize_logits: bool, return_scores: bool
) -> Labels | LabelsAndScores:
    checked = check_views(views, size)
    device = checked[0].class_logits.device
    tensors = [tensor for view in checked for tensor in view.tensors]
    sizes = checked[0].sizes
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    with without_autocast(device):
        native = backend.select("semantic_segmentation", device, native_problem(*tensors))
        dtype = result_dtype(*tensors)
        # Scores are linear in the probabilities, so that dividing these averages the views.
        probability = [
            view.class_logits.to(dtype).softmax(-1)[..., :-1] / len(checked) for view in checked
        ]
        for image, result_size in enumerate(sizes.results):
            if native == "native":
                features = [view.features(image) for view in checked]
                sides = [view.sides(image) for view in checked]
                image_labels, image_scores = torch.ops.mfkernels.semantic_segmentation(
                    probability=[of_view[image] for of_view in probability],
                    mask_embed=[view.predictions.embed[0, image] for view in checked],
                    pixel_features=[x for x in features if x is not None],
                    padded_heights=[side.padded_height for side in sides],
                    padded_widths=[side.padded_width for side in sides],
                    image_heights=[side.image_height for side in sides],
                    image_widths=[side.image_width for side in sides],
                    flipped=[view.flipped for view in checked],
                    height=result_size[0],
                    width=result_size[1],
                    resize_logits=resize_logits,
                    return_scores=return_scores,
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


def _mean_scores(views: list[CheckedView], image: int, resize_logits: bool) -> Tensor:
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
    """Stack the images; a single image is not copied."""
    return images[0][None] if len(images) == 1 else torch.stack(images)
