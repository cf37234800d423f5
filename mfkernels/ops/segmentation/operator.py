"""The operators `semantic_segmentation` and `panoptic_owners`, each for one image.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels.checks import result_dtype
from mfkernels.ops.common.arguments import check_argument, check_sides
from mfkernels.ops.common.registration import register

TRITON = "mfkernels.ops.segmentation.triton_launch"


def check_semantic(
    probability: Sequence[Tensor],
    mask_embed: Sequence[Tensor],
    pixel_features: Sequence[Tensor],
    padded_heights: Sequence[int],
    padded_widths: Sequence[int],
    image_heights: Sequence[int],
    image_widths: Sequence[int],
    flipped: Sequence[bool],
    height: int,
    width: int,
    resize_logits: bool,
    return_scores: bool,
) -> None:
    views = len(probability)
    sides = (padded_heights, padded_widths, image_heights, image_widths)
    found = [len(mask_embed), *map(len, sides), len(flipped)]
    if views == 0 or {*found, len(pixel_features) or views} != {views}:
        raise ValueError(
            "probability, mask_embed, the sizes, flipped and pixel_features must be of the same "
            f"views, at least one, got {views}, {', '.join(map(str, found))} and "
            f"{len(pixel_features)}"
        )
    check_sides("results", height, width)
    classes: int | str = "K"
    for view, of_queries in enumerate(probability):
        features = pixel_features[view] if pixel_features else None
        _check_view(mask_embed[view], features, *(side[view] for side in sides), like=of_queries)
        queries = mask_embed[view].shape[0]
        check_argument("probability", of_queries, (queries, classes), probability[0])
        classes = of_queries.shape[1]
    if classes == 0:
        raise ValueError(f"probability must have classes, got {list(probability[0].shape)}")


def check_owners(
    scores: Tensor, mask_embed: Tensor, pixel_features: Tensor | None, *sizes: Any
) -> None:
    *sides, height, width, _confident_only = sizes
    check_sides("results", height, width)
    _check_view(mask_embed, pixel_features, *sides, like=scores)
    check_argument("scores", scores, (mask_embed.shape[0],), mask_embed)


def _check_view(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    padded_height: int,
    padded_width: int,
    image_height: int,
    image_width: int,
    *,
    like: Tensor,
) -> None:
    if pixel_features is None:
        check_argument("mask_embed", mask_embed, ("Q", "h", "w"), like)
        sides = mask_embed.shape[1:]
    else:
        check_argument("mask_embed", mask_embed, ("Q", "C"), like)
        check_argument("pixel_features", pixel_features, (mask_embed.shape[1], "h", "w"), like)
        sides = pixel_features.shape[1:]
    if mask_embed.shape[0] == 0:
        raise ValueError(f"mask_embed must have queries, got {list(mask_embed.shape)}")
    check_sides("masks", *sides)
    check_sides("the padded input", padded_height, padded_width)
    check_sides("the image", image_height, image_width)
    if image_height > padded_height or image_width > padded_width:
        raise ValueError(
            f"the image must fit into the padded input, got {image_height} x {image_width} in "
            f"{padded_height} x {padded_width}"
        )


def fake_semantic(
    probability: Sequence[Tensor],
    mask_embed: Sequence[Tensor],
    pixel_features: Sequence[Tensor],
    *sizes: Any,
) -> tuple[Tensor, Tensor]:
    *_, height, width, _resize_logits, return_scores = sizes
    dtype = result_dtype(*probability, *mask_embed, *pixel_features)
    shape = (probability[0].shape[1], height, width) if return_scores else (0,)
    labels = probability[0].new_empty((height, width), dtype=torch.int64)
    return labels, probability[0].new_empty(shape, dtype=dtype)


def fake_owners(scores: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, height, width, _confident_only = others
    owners = scores.new_empty((height, width), dtype=torch.int32)
    return owners, scores.new_empty((len(scores), 3), dtype=torch.int64)


register("semantic_segmentation", check=check_semantic, fake=fake_semantic, triton=TRITON)
register("panoptic_owners", check=check_owners, fake=fake_owners, triton=TRITON)
