"""Instance inference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfkernels.checks import result_dtype, without_autocast
from mfkernels.ops.segmentation import reference
from mfkernels.ops.segmentation.views import (
    CheckedView,
    SegmentationView,
    Size,
    Sizes,
    check_things,
    check_view,
)
from mfkernels.scalars import as_integer

_CHUNK_PIXELS = 1 << 22
"""The number of logits that instance inference holds in memory at a time."""


class Instances(NamedTuple):
    """The instances of one image, in order of decreasing class probability."""

    masks: Tensor
    """`[N, H, W]` bool."""
    labels: Tensor
    """`[N]` int64 class indices."""
    scores: Tensor
    """`[N]`, float32 or float64: class probability times the mean sigmoid inside the mask."""
    boxes: Tensor
    """`[N, 4]` float32: left, top, right and bottom of the mask in pixels, the last two exclusive;
    zeros for an empty mask."""


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
    """Find the `top_k` most probable pairs of query and class, each with the query's mask.

    This is the instance inference of Mask2Former's official code (it is not in the papers). A mask
    holds the pixels whose resized logit is positive; the score is the class probability times the
    mean sigmoid inside the mask. Computed in float32 (float64 if an input is float64), in plain
    PyTorch with every backend, and in chunks of masks.

    Args:
        class_logits: `[B, Q, K+1]`, any floating-point dtype; index K is "no object".
        mask_embed: `[B, Q, C]`; or mask logits `[B, Q, h, w]`.
        pixel_features: `[B, C, h, w]`; None for mask logits.
        size: `(H, W)` of all results in pixels, or one `(H_b, W_b)` per image.
        top_k: the largest number of instances per image. A query may appear with several classes.
        thing_classes: keep only the instances of these classes among the `top_k`. None: keep all.
        input_size, image_sizes: as in `semantic_segmentation`. The logits are cropped and resized.

    Returns:
        The instances of each image; see `Instances`.

    Raises:
        TypeError, ValueError: a dtype, shape, device, size, class or `top_k` is wrong.
    """
    view = check_view(
        SegmentationView(class_logits, mask_embed, pixel_features, input_size, image_sizes), size
    )
    classes = class_logits.shape[-1] - 1
    things = None if thing_classes is None else check_things(thing_classes, classes)
    top_k = as_integer("top_k", top_k, at_least=1)
    results = []
    with without_autocast(mask_embed.device):
        probability = view.class_logits.to(result_dtype(*view.tensors)).softmax(-1)
        probability = probability[..., :-1].flatten(1).nan_to_num(0)  # topk would put NaN first
        for image, of_pairs in enumerate(probability):
            scores, pairs = of_pairs.topk(min(top_k, len(of_pairs)))
            if things is not None and not pairs.is_meta:  # how many are kept depends on values
                kept = torch.tensor(sorted(things), dtype=pairs.dtype, device=pairs.device)
                keep = torch.isin(pairs % classes, kept)
                scores, pairs = scores[keep], pairs[keep]
            queries = pairs // classes
            if queries.is_meta:  # meta tensors have shapes, but no values
                masks, means = _instance_masks(view, image, queries)
            else:  # A query may appear with several classes; its mask is computed once.
                queries, positions = queries.unique(return_inverse=True)
                masks, means = (x[positions] for x in _instance_masks(view, image, queries))
            results.append(Instances(masks, pairs % classes, scores * means, _boxes(masks)))
    return results


def _instance_masks(view: CheckedView, image: int, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Masks `[N, H, W]` of `queries [N]` and the mean sigmoid inside each mask."""
    sizes = view.sizes
    size = sizes.results[image]
    masks = torch.empty((len(queries), *size), dtype=torch.bool, device=queries.device)
    means = queries.new_empty(len(queries), dtype=result_dtype(*view.tensors))
    chunk_size = max(1, _CHUNK_PIXELS // max(sizes.input[0] * sizes.input[1], size[0] * size[1]))
    for start in range(0, len(queries), chunk_size):
        chunk = slice(start, start + chunk_size)
        rows = view.predictions.embed[0, image, queries[chunk]]
        logits = reference.finite_logits(rows, view.features(image))
        logits = reference.resize_twice(logits, sizes.input, sizes.images[image], size)
        inside = torch.gt(logits, 0, out=masks[chunk])
        total = (logits.sigmoid_() * inside).sum((1, 2))
        means[chunk] = total / (inside.sum((1, 2)).to(total.dtype) + 1e-6)
    return masks, means


def _boxes(masks: Tensor) -> Tensor:
    """The bounding boxes of masks; see `Instances.boxes`."""
    edges = []
    for axis in (1, 2):  # projected on x: left and right; projected on y: top and bottom
        filled = masks.any(axis)
        first = filled.byte().argmax(1)
        end = filled.shape[1] - filled.flip(1).byte().argmax(1)
        edges.append((first, torch.where(filled.any(1), end, 0)))
    (left, right), (top, bottom) = edges
    return torch.stack((left, top, right, bottom), 1).float()
