"""Check the arguments of operators of `torch.ops.mfkernels`.

csrc/tensors/checks.h checks them on the CPU; these functions do so for fake tensors and for Triton
kernels. They check shapes, dtypes and devices only, because checking values on a GPU would wait for
it. They raise ValueError (TypeError for a dtype) with the expected and the given argument.

`as_size` reads a size that a user passes, and returns None if it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels.checks import check_tensor
from mfkernels.scalars import integer_or_none

MOST_SIDE = 1 << 24
"""The longest side of masks and results: positions are computed in float32, where larger integers
are not exact."""
MOST_ROWS = torch.iinfo(torch.int32).max // 2
"""The most rows or columns of an assignment problem."""
MOST_PROBLEMS = 1 << 26

Sizes = Sequence[int | str]
"""The expected sizes; a letter stands for any size."""


def as_size(size: Any) -> tuple[int, int] | None:
    """Return height and width if this is a pair of positive integers up to `MOST_SIDE`, or None."""
    try:
        sides = [integer_or_none(side) for side, _ in zip(size, range(3), strict=False)]
    except TypeError:
        return None
    if len(sides) != 2:
        return None
    height, width = sides
    if height is None or width is None or min(height, width) < 1 or max(height, width) > MOST_SIDE:
        return None
    return height, width


def check_shape(name: str, tensor: Tensor, sizes: Sizes) -> None:
    shape = tensor.shape
    if len(shape) == len(sizes) and all(
        isinstance(size, str) or given == size for given, size in zip(shape, sizes, strict=True)
    ):
        return
    raise ValueError(f"{name} must be [{', '.join(map(str, sizes))}], got {list(shape)}")


def check_argument(
    name: str,
    tensor: Tensor,
    sizes: Sizes,
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Check a tensor; without `dtype`, any floating-point dtype is valid."""
    check_tensor(name, tensor)
    check_shape(name, tensor, sizes)
    if isinstance(like, Tensor) and tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, but is on {tensor.device}")
    if dtype is None and not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_prediction_arguments(mask_embed: Tensor, pixel_features: Tensor | None) -> None:
    if pixel_features is None:
        check_argument("mask_embed", mask_embed, ("L", "B", "Q", "h", "w"), mask_embed)
        height, width = mask_embed.shape[-2:]
    else:
        check_argument("mask_embed", mask_embed, ("L", "B", "Q", "C"), mask_embed)
        _, images, _, channels = mask_embed.shape
        check_argument("pixel_features", pixel_features, (images, channels, "h", "w"), mask_embed)
        height, width = pixel_features.shape[-2:]
    check_sides("masks", height, width)


def check_sides(name: str, height: int, width: int) -> None:
    if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
        raise ValueError(f"{name} must have sides of 1 to {MOST_SIDE}, got {height} x {width}")


def check_segments(
    label_map: Tensor | None, masks: Tensor | None, counts: Tensor, like: Tensor, images: int
) -> None:
    if (label_map is None) == (masks is None):
        raise ValueError("exactly one of label_map and masks is needed")
    check_argument("counts", counts, (images,), like, torch.int64)
    if label_map is not None:
        check_argument("label_map", label_map, (images, "H", "W"), like, torch.int16)
        check_sides("label_map", *label_map.shape[1:])
    if masks is not None:
        check_argument("masks", masks, ("N", "H", "W"), like, torch.bool)
        check_sides("masks", *masks.shape[1:])


def check_images(name: str, images: Tensor) -> None:
    """Check that images are `[M, h, w]` with at least one pixel, bool or floating-point."""
    check_argument(name, images, ("M", "h", "w"), images, bool_if_it_is(images))
    if 0 in images.shape[1:]:
        raise ValueError(f"{name} must have pixels, got {list(images.shape)}")


def is_empty(tensor: Tensor) -> bool:
    """Whether a tensor has no elements. Sizes that a compiler does not know count as positive."""
    return any(isinstance(size, int) and size == 0 for size in tensor.shape)


def bool_if_it_is(tensor: Tensor) -> torch.dtype | None:
    """Return the `dtype` for `check_argument` if both bool and floating point are valid."""
    return torch.bool if isinstance(tensor, Tensor) and tensor.dtype == torch.bool else None
