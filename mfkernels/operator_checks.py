"""What the operators of `torch.ops.mfkernels` ask of their arguments, by their names.

As csrc/tensors/checks.h asks it on the CPU: here for fake tensors and for the kernels of GPUs,
which no C++ stands before. Shapes, dtypes and devices only: values on a GPU would have to be waited
for.
All raise ValueError (TypeError for a dtype) with what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_SIDE = 1 << 24
"""The longest side of masks and results: float32, in which they are resized, counts no further."""
MOST_ROWS = torch.iinfo(torch.int32).max // 2
"""Rows and columns of an assignment problem."""
MOST_PROBLEMS = 1 << 26

Sizes = Sequence[int | str]
"""The sizes that are wanted; a letter stands for any."""

_HARMLESS_BYTES = 1 << 28
_REPEATS = 64


def is_inflated(sizes: Sequence[int], strides: Sequence[int], item_size: int) -> bool:
    """Whether a view repeats its memory so often that a copy would take far more memory.

    Strides are in elements.
    """
    elements = math.prod(sizes)
    if elements * item_size <= _HARMLESS_BYTES:
        return False
    reach = 1 + sum((size - 1) * abs(stride) for size, stride in zip(sizes, strides, strict=True))
    return elements // _REPEATS > reach


def check_memory(name: str, tensor: Tensor) -> None:
    """Refuse a view that takes far more memory to work on than it has, such as an expanded one."""
    if torch.compiler.is_compiling() or tensor.layout != torch.strided or tensor.is_contiguous():
        return
    if is_inflated(tensor.shape, tensor.stride(), tensor.element_size()):
        raise ValueError(
            f"{name} is a view that repeats a little memory too often to be worked on, got "
            f"{list(tensor.shape)}; give it memory of its own with contiguous() if it is meant"
        )


def check_shape(name: str, tensor: Tensor, sizes: Sizes) -> None:
    shape = tensor.shape
    if len(shape) == len(sizes) and all(
        isinstance(size, str) or given == size for given, size in zip(shape, sizes, strict=True)
    ):
        return
    raise ValueError(f"{name} must be [{', '.join(map(str, sizes))}], got {list(shape)}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):  # the dispatcher lets None pass as an undefined tensor
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def _check(
    name: str,
    tensor: Tensor,
    sizes: Sizes,
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """`dtype`: the one that is needed, or any floating-point one."""
    _check_tensor(name, tensor)
    check_shape(name, tensor, sizes)
    if isinstance(like, Tensor) and tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, but is on {tensor.device}")
    if dtype is None and not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def _check_masks(mask_embed: Tensor, pixel_features: Tensor | None) -> None:
    if pixel_features is None:
        _check("mask_embed", mask_embed, ("L", "B", "Q", "h", "w"), mask_embed)
        height, width = mask_embed.shape[-2:]
    else:
        _check("mask_embed", mask_embed, ("L", "B", "Q", "C"), mask_embed)
        _, images, _, channels = mask_embed.shape
        _check("pixel_features", pixel_features, (images, channels, "h", "w"), mask_embed)
        height, width = pixel_features.shape[-2:]
    _check_sides("masks", height, width)


def _check_sides(name: str, height: int, width: int) -> None:
    if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
        raise ValueError(f"{name} must have sides of 1 to {MOST_SIDE}, got {height} x {width}")


def _check_segments(
    label_map: Tensor | None, masks: Tensor | None, counts: Tensor, like: Tensor, images: int
) -> None:
    if (label_map is None) == (masks is None):
        raise ValueError("exactly one of label_map and masks is needed")
    _check("counts", counts, (images,), like, torch.int64)
    if label_map is not None:
        _check("label_map", label_map, (images, "H", "W"), like, torch.int16)
        _check_sides("label_map", *label_map.shape[1:])
    if masks is not None:
        _check("masks", masks, ("N", "H", "W"), like, torch.bool)
        _check_sides("masks", *masks.shape[1:])


def _check_focal(alpha: float, gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, got {gamma}")
    if not -math.inf < alpha <= 1:
        raise ValueError(f"alpha must be finite and at most 1, got {alpha}")


def _wide(*tensors: Tensor | None) -> torch.dtype:
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def assignment(
    cost: Tensor,
    row_counts: Tensor | None,
    col_counts: Tensor | None,
    maximize: bool,
    strict: bool = False,
) -> None:
    _check("cost", cost, ("B", "R", "C"), cost)
    limits = {"problems": MOST_PROBLEMS, "rows": MOST_ROWS, "columns": MOST_ROWS}
    for (name, most), size in zip(limits.items(), cost.shape, strict=True):
        if size > most:
            raise ValueError(f"cost must have at most {most} {name}, got {size}")
    for name, counts in (("row_counts", row_counts), ("col_counts", col_counts)):
        if counts is not None:
            _check(name, counts, (cost.shape[0],), cost, torch.int64)


def mask_logits(mask_embed: Tensor, pixel_features: Tensor) -> None:
    _check("mask_embed", mask_embed, ("L", "B", "Q", "C"), mask_embed)
    _, images, _, channels = mask_embed.shape
    sizes = (images, channels, "h", "w")
    _check("pixel_features", pixel_features, sizes, mask_embed, mask_embed.dtype)


def matching_cost(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    max_count: int,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    alpha: float,
    gamma: float,
) -> None:
    _check_masks(mask_embed, pixel_features)
    layers, images, queries = mask_embed.shape[:3]
    _check("class_logits", class_logits, (layers, images, queries, "K + 1"), mask_embed)
    if class_logits.shape[3] < 1:
        raise ValueError(f"class_logits must have classes, got {list(class_logits.shape)}")
    _check_segments(label_map, masks, counts, mask_embed, images)
    number = "N" if masks is None else masks.shape[0]
    _check("labels", labels, (number,), mask_embed, torch.int64)
    if max_count < 0:
        raise ValueError(f"max_count must be at least 0, got {max_count}")
    _check_focal(alpha, gamma)


def mask_loss(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
) -> None:
    _check_masks(mask_embed, pixel_features)
    layers, images = mask_embed.shape[:2]
    _check("assignment", assignment, (layers, images, "T"), mask_embed, torch.int64)
    _check_segments(label_map, masks, counts, mask_embed, images)
    _check_focal(alpha, gamma)


def mask_loss_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
    embed_needed: bool,
    features_needed: bool,
) -> None:
    mask_loss(mask_embed, pixel_features, label_map, masks, counts, assignment, alpha, gamma)
    dtype = _wide(mask_embed, pixel_features)
    _check("grad_focal", grad_focal, assignment.shape, mask_embed, dtype)
    _check("grad_dice", grad_dice, assignment.shape, mask_embed, dtype)
    _check("sums", sums, (*assignment.shape, 3), mask_embed, dtype)


def _bool_if_it_is(tensor: Tensor) -> torch.dtype | None:
    return torch.bool if isinstance(tensor, Tensor) and tensor.dtype == torch.bool else None


def _check_pair(logits: Tensor, targets: Tensor, sizes: Sizes) -> None:
    _check("logits", logits, sizes, logits)
    _check("targets", targets, logits.shape, logits, _bool_if_it_is(targets))


def focal_dice(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> None:
    _check_pair(logits, targets, ("M", "P"))
    _check_focal(alpha, gamma)


def focal_dice_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    logits: Tensor,
    targets: Tensor,
    alpha: float,
    gamma: float,
) -> None:
    focal_dice(logits, targets, alpha, gamma)
    _check_sums(grad_focal, grad_dice, sums, logits)


def _check_sums(grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, logits: Tensor) -> None:
    masks = logits.shape[0]
    _check("grad_focal", grad_focal, (masks,), logits, _wide(logits))
    _check("grad_dice", grad_dice, (masks,), logits, _wide(logits))
    _check("sums", sums, (masks, 3), logits, _wide(logits))


def point_loss(logits: Tensor, targets: Tensor, points: Tensor, alpha: float, gamma: float) -> None:
    _check_images("logits", logits)
    masks = logits.shape[0]
    _check("targets", targets, (masks, "H", "W"), logits, _bool_if_it_is(targets))
    _check_images("targets", targets)
    _check("points", points, (masks, "P", 2), logits, _wide(logits))
    _check_focal(alpha, gamma)


def point_loss_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    logits: Tensor,
    targets: Tensor,
    points: Tensor,
    alpha: float,
    gamma: float,
) -> None:
    point_loss(logits, targets, points, alpha, gamma)
    _check_sums(grad_focal, grad_dice, sums, logits)


def _check_images(name: str, images: Tensor) -> None:
    _check(name, images, ("M", "h", "w"), images, _bool_if_it_is(images))
    if 0 in images.shape[1:]:
        raise ValueError(f"{name} must have pixels, got {list(images.shape)}")


def sample_points(images: Tensor, points: Tensor) -> None:
    _check_images("images", images)
    _check("points", points, ("M", "P", 2), images)
    if points.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"points must be [{images.shape[0]}, P, 2] or [1, P, 2], got {list(points.shape)}"
        )


def sample_points_backward(grad_values: Tensor, images: Tensor, points: Tensor) -> None:
    sample_points(images, points)
    sizes = (images.shape[0], points.shape[1])
    _check("grad_values", grad_values, sizes, images, points.dtype)


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> None:
    _check_tensor("logits", logits)
    _check_pair(logits, targets, logits.shape)
    _check_focal(alpha, gamma)


def sigmoid_focal_loss_backward(
    grad_losses: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> None:
    sigmoid_focal_loss(logits, targets, alpha, gamma)
    _check("grad_losses", grad_losses, logits.shape, logits, logits.dtype)


def semantic_segmentation(
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
    _check_sides("results", height, width)
    classes: int | str = "K"
    for view, chances in enumerate(probability):
        features = pixel_features[view] if pixel_features else None
        _check_view(mask_embed[view], features, *(side[view] for side in sides), like=chances)
        queries = mask_embed[view].shape[0]
        _check("probability", chances, (queries, classes), probability[0])
        classes = chances.shape[1]
    if classes == 0:
        raise ValueError(f"probability must have classes, got {list(probability[0].shape)}")


def panoptic_owners(
    scores: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    padded_height: int,
    padded_width: int,
    image_height: int,
    image_width: int,
    height: int,
    width: int,
    confident_only: bool,
) -> None:
    _check_sides("results", height, width)
    padded = padded_height, padded_width
    _check_view(mask_embed, pixel_features, *padded, image_height, image_width, like=scores)
    _check("scores", scores, (mask_embed.shape[0],), mask_embed)


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
        _check("mask_embed", mask_embed, ("Q", "h", "w"), like)
        sides = mask_embed.shape[1:]
    else:
        _check("mask_embed", mask_embed, ("Q", "C"), like)
        _check("pixel_features", pixel_features, (mask_embed.shape[1], "h", "w"), like)
        sides = pixel_features.shape[1:]
    if mask_embed.shape[0] == 0:
        raise ValueError(f"mask_embed must have queries, got {list(mask_embed.shape)}")
    _check_sides("masks", *sides)
    _check_sides("the padded input", padded_height, padded_width)
    _check_sides("the image", image_height, image_width)
    if image_height > padded_height or image_width > padded_width:
        raise ValueError(
            f"the image must fit into the padded input, got {image_height} x {image_width} in "
            f"{padded_height} x {padded_width}"
        )


def class_loss(
    class_logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    assignment: Tensor,
    no_object_weight: float,
) -> None:
    _check("class_logits", class_logits, ("L", "B", "Q", "K + 1"), class_logits)
    layers, images, _, classes = class_logits.shape
    if classes < 1:
        raise ValueError(f"class_logits must have classes, got {list(class_logits.shape)}")
    _check("labels", labels, ("N",), class_logits, torch.int64)
    _check("counts", counts, (images,), class_logits, torch.int64)
    _check("assignment", assignment, (layers, images, "T"), class_logits, torch.int64)


def class_loss_backward(
    grad_loss: Tensor,
    class_logits: Tensor,
    normalizer: Tensor,
    target: Tensor,
    no_object_weight: float,
) -> None:
    _check("class_logits", class_logits, ("L", "B", "Q", "K + 1"), class_logits)
    *rows, _ = class_logits.shape
    _check("grad_loss", grad_loss, rows[:1], class_logits, torch.float32)
    _check("normalizer", normalizer, rows, class_logits, torch.float32)
    _check("target", target, rows, class_logits, torch.int32)
