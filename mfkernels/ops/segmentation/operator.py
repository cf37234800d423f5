"""The operators `semantic_segmentation` and `panoptic_owners`, each for one image.

csrc/torch_library.cpp describes their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfkernels.checks import result_dtype
from mfkernels.ops.common.arguments import check_argument, check_sides
from mfkernels.ops.common.registration import register

TRITON = "mfkernels.ops.segmentation.triton_kernels"


def check_semantic(
    probability: Sequence[Tensor],
    mask_embed: Sequence[Tensor],
    pixel_features: Sequence[Tensor],
    geometry: Sequence[int],
    height: int,
    width: int,
    resize_logits: bool,
    return_scores: bool,
) -> None:
    views = len(probability)
    if (
        views == 0
        or len(mask_embed) != views
        or len(geometry) != 5 * views
        or len(pixel_features) not in (0, views)
    ):
        raise ValueError(
            "probability, mask_embed, geometry and pixel_features must be of the same views, got "
            f"{views}, {len(mask_embed)}, {len(geometry)} numbers and {len(pixel_features)}"
        )
    check_sides("results", height, width)
    classes: int | str = "K"
    for view, of_queries in enumerate(probability):
        features = pixel_features[view] if pixel_features else None
        _check_view(mask_embed[view], features, geometry[5 * view : 5 * view + 4], of_queries)
        queries = mask_embed[view].shape[0]
        check_argument("probability", of_queries, (queries, classes), probability[0])
        classes = of_queries.shape[1]
    if classes == 0:
        raise ValueError(f"probability must have classes, got {list(probability[0].shape)}")


def check_owners(
    scores: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    geometry: Sequence[int],
    height: int,
    width: int,
    confident_only: bool,
) -> None:
    if len(geometry) != 4:
        raise ValueError(f"geometry must hold 4 numbers, got {len(geometry)}")
    check_sides("results", height, width)
    _check_view(mask_embed, pixel_features, geometry, scores)
    check_argument("scores", scores, (mask_embed.shape[0],), mask_embed)


def _check_view(
    mask_embed: Tensor, pixel_features: Tensor | None, geometry: Sequence[int], like: Tensor
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
    height, width, image_height, image_width = geometry
    check_sides("geometry", height, width)
    check_sides("geometry", image_height, image_width)
    if image_height > height or image_width > width:
        raise ValueError(
            f"geometry: the image must fit into the input, got {image_height} x {image_width} in "
            f"{height} x {width}"
        )


def fake_semantic(
    probability: list[Tensor],
    mask_embed: list[Tensor],
    pixel_features: list[Tensor],
    geometry: list[int],
    height: int,
    width: int,
    resize_logits: bool,
    return_scores: bool,
) -> tuple[Tensor, Tensor]:
    dtype = result_dtype(*probability, *mask_embed, *pixel_features)
    shape = (probability[0].shape[1], height, width) if return_scores else (0,)
    labels = probability[0].new_empty((height, width), dtype=torch.int64)
    return labels, probability[0].new_empty(shape, dtype=dtype)


def fake_owners(
    scores: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    geometry: list[int],
    height: int,
    width: int,
    confident_only: bool,
) -> tuple[Tensor, Tensor]:
    owners = scores.new_empty((height, width), dtype=torch.int32)
    return owners, scores.new_empty((len(scores), 3), dtype=torch.int64)


register("semantic_segmentation", check=check_semantic, fake=fake_semantic, triton=TRITON)
register("panoptic_owners", check=check_owners, fake=fake_owners, triton=TRITON)
