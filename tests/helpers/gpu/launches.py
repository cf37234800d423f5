"""Records the launches of every operation at the sizes of the paper's models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from helpers.gpu.compiler import Launch, recorded, specialised
from torch import Tensor

from mfkernels.ops.class_loss import triton_launch as class_losses
from mfkernels.ops.focal_dice import triton_launch as focal_dice
from mfkernels.ops.loss_sums import triton_launch as sums_of_losses
from mfkernels.ops.mask_loss import triton_launch as mask_losses
from mfkernels.ops.matching_cost import triton_launch as matching
from mfkernels.ops.segmentation import triton_launch as segmentation

LAYERS, IMAGES, QUERIES = 6, 16, 100
CHANNELS = (64, 128, 256, 512)
SEGMENTS = (1, 24, 100)
CLASSES = (19, 150, 847)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def predictions(
    dtype: torch.dtype, channels: int, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor | None]:
    """Mask embeddings and pixel features at ADE20K's sizes with batch size 16; dense logits and
    None if `channels` is 0.
    """
    if channels == 0:
        return meta(LAYERS, IMAGES, QUERIES, 128, 128, dtype=dtype), None
    embed = meta(LAYERS, IMAGES, QUERIES, channels, dtype=dtype)
    return embed, meta(IMAGES, channels, 128, 128, dtype=dtype).to(memory_format=layout)


def segments(count: int, label_map: bool, size: int = 512) -> tuple[Tensor | None, Tensor | None]:
    if label_map:
        return meta(IMAGES, size, size, dtype=torch.int16), None
    return None, meta(IMAGES * count, size, size, dtype=torch.bool)


def of_matching_cost(
    dtype: torch.dtype,
    channels: int,
    count: int,
    label_map: bool = True,
    gamma: float = 2.0,
    *,
    classes: int = 150,
    layout: torch.memory_format = torch.contiguous_format,
) -> list[Launch]:
    with recorded() as launches:
        matching.matching_cost(
            meta(LAYERS, IMAGES, QUERIES, classes + 1, dtype=dtype),
            *predictions(dtype, channels, layout),
            *segments(count, label_map),
            meta(IMAGES * count, dtype=torch.int64),
            meta(IMAGES, dtype=torch.int64),
            count,
            *(1.0, 20.0, 1.0, 0.25, gamma),
        )
    return launches


def of_mask_loss(
    dtype: torch.dtype,
    channels: int,
    count: int,
    label_map: bool = True,
    gamma: float = 2.0,
    *,
    keep_maps: bool = True,
    ratio: int = 4,
    layout: torch.memory_format = torch.contiguous_format,
) -> list[Launch]:
    """Launches of the mask loss with its backward pass."""
    shape = (LAYERS, IMAGES, count)
    inputs = (
        *predictions(dtype, channels, layout),
        *segments(count, label_map, 128 * ratio),
        meta(IMAGES, dtype=torch.int64),
        meta(*shape, dtype=torch.int64),
        IMAGES * count,
        *(0.25, gamma),
    )
    with recorded() as launches:
        _, _, *saved = mask_losses.mask_loss(*inputs, keep_maps)
        mask_losses.mask_loss_backward(
            meta(*shape), meta(*shape), *saved, *inputs, True, channels > 0
        )
    return launches


def of_class_loss(
    dtype: torch.dtype = torch.float32, classes: int = 150, count: int = 12
) -> list[Launch]:
    class_logits = meta(LAYERS, IMAGES, QUERIES, classes + 1, dtype=dtype)
    labels, counts = meta(IMAGES * count, dtype=torch.int64), meta(IMAGES, dtype=torch.int64)
    assignment = meta(LAYERS, IMAGES, count, dtype=torch.int64)
    with recorded() as launches:
        _, _, *saved = class_losses.class_loss(class_logits, labels, counts, assignment, 0.1)
        class_losses.class_loss_backward(meta(LAYERS), class_logits, *saved, 0.1)
    return launches


def of_loss_sums(count: int = 12, *, num_masks_on_gpu: bool = False) -> list[Launch]:
    of_segments, of_layers = (LAYERS, IMAGES, count), (LAYERS,)
    losses = (meta(*shape) for shape in (of_segments, of_segments, of_layers, of_layers))
    with recorded() as launches:
        num_masks = meta() if num_masks_on_gpu else 7.0
        sums_of_losses.loss_sums(*losses, num_masks, (1.0, 20.0, 1.0))
    return launches


def of_focal_dice(
    dtype: torch.dtype, targets_dtype: torch.dtype, gamma: float = 2.0
) -> list[Launch]:
    logits, targets = (meta(864, 512 * 512, dtype=kind) for kind in (dtype, targets_dtype))
    options = (targets, 0.25, gamma)
    with recorded() as launches:
        focal, dice, sums = focal_dice.focal_dice(logits, *options)
        focal_dice.focal_dice_backward(focal, dice, sums, logits, *options)
        loss = focal_dice.sigmoid_focal_loss(logits, *options)
        focal_dice.sigmoid_focal_loss_backward(loss, logits, *options)
    return launches


def of_semantic(
    dtype: torch.dtype,
    classes: int,
    *,
    channels: int = 256,
    resized: bool = False,
    scores: bool = False,
    views: int = 1,
    low: tuple[int, int] = (256, 512),
    resize_logits: bool = False,
) -> list[Launch]:
    """Launches at 1024x2048 with 100 queries; on dense logits if `channels` is 0."""
    embed = meta(QUERIES, *((channels,) if channels else low), dtype=dtype)
    features = [meta(channels, *low, dtype=dtype)] * views if channels else []
    image = (1024 - resized, 2048)
    with recorded() as launches:
        segmentation.semantic_segmentation(
            [meta(QUERIES, classes)] * views,
            [embed] * views,
            features,
            *([side] * views for side in (1024, 2048, *image)),
            [False] * views,
            *(1024, 2048, resize_logits, scores),
        )
    return launches


def of_panoptic(dtype: torch.dtype, channels: int = 256, *, resized: bool = False) -> list[Launch]:
    embed = meta(QUERIES, *((channels,) if channels else (200, 272)), dtype=dtype)
    with recorded() as launches:
        segmentation.panoptic_owners(
            meta(QUERIES),
            embed,
            meta(channels, 200, 272, dtype=dtype) if channels else None,
            *(800, 1088, 800 - resized, 1088),
            *(800, 1088, resized),
        )
    return launches


def of_everything(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Yield every launch that is compiled differently from those before, with the name of its case.

    Covers the matching cost for each number of channels with each number of segments, and the class
    loss for each number of segments with each number of classes; for the mask loss, only one of
    channels and segments differs from its typical number. Other forms of training's inputs, such as
    masks instead of label maps or dense logits, are covered at typical sizes only.
    """
    seen: set[tuple[str, ...]] = set()
    for case, launches in _cases(dtype):
        for launch in launches:
            key = _identity(launch)
            if key not in seen:
                seen.add(key)
                yield case, launch


def _cases(dtype: torch.dtype) -> Iterator[tuple[str, list[Launch]]]:
    yield from _cases_of_training(dtype)
    forms: dict[str, dict[str, Any]] = {
        "": {},
        ", resized": {"resized": True},
        ", logits resized": {"resized": True, "resize_logits": True},
        ", masks of full size": {"low": (1024, 2048)},
        ", two views": {"views": 2, "resized": True},
        ", dense logits": {"channels": 0},
    }
    for classes, (form, options), scores in itertools.product(
        CLASSES, forms.items(), (False, True)
    ):
        launches = of_semantic(dtype, classes, scores=scores, **options)
        yield f"K={classes}{form}{', scores' * scores}", launches
    for channels in CHANNELS:
        yield f"C={channels} K=150", of_semantic(dtype, 150, channels=channels)
    for channels, resized in itertools.product((0, *CHANNELS), (False, True)):
        yield f"C={channels}, owners", of_panoptic(dtype, channels, resized=resized)


def _cases_of_training(dtype: torch.dtype) -> Iterator[tuple[str, list[Launch]]]:
    for channels, count in itertools.product(CHANNELS, SEGMENTS):
        case = f"C={channels} T={count}"
        yield f"{case} K=150", of_matching_cost(dtype, channels, count)
        if channels == 256 or count == 24:
            yield case, of_mask_loss(dtype, channels, count)
    for classes, count in itertools.product(CLASSES, SEGMENTS):
        if count == 24:
            yield f"C=256 T=24 K={classes}", of_matching_cost(dtype, 256, 24, classes=classes)
        yield f"K={classes} T={count}", of_class_loss(dtype, classes, count)
    for channels, label_map in ((0, True), (0, False), (256, False)):
        case = f"C={channels} T=24{'' if label_map else ', masks'}"
        yield case, of_matching_cost(dtype, channels, 24, label_map)
        yield case, of_mask_loss(dtype, channels, 24, label_map)
        yield f"{case}, no maps", of_mask_loss(dtype, channels, 24, label_map, keep_maps=False)
    yield "C=256 T=24, gamma 1.5", of_matching_cost(dtype, 256, 24, gamma=1.5)
    yield "C=256 T=24, gamma 1.5", of_mask_loss(dtype, 256, 24, gamma=1.5)
    last = torch.channels_last
    yield "C=256 T=24, channels last", of_matching_cost(dtype, 256, 24, layout=last)
    yield "C=256 T=24, channels last", of_mask_loss(dtype, 256, 24, layout=last)
    yield "C=256 T=24, ratio 3", of_mask_loss(dtype, 256, 24, ratio=3)
    for on_gpu in (False, True):
        yield f"num_masks on {'GPU' if on_gpu else 'CPU'}", of_loss_sums(num_masks_on_gpu=on_gpu)
    for targets_dtype in (torch.bool, dtype):
        yield f"{targets_dtype} targets", of_focal_dice(dtype, targets_dtype)


def _identity(launch: Launch) -> tuple[str, ...]:
    """All that the compiler sees of a launch: kernel, specialised arguments and options."""
    given = (
        repr(value if parameter.is_constexpr else specialised(value))
        for parameter in launch.kernel.params
        for value in [launch.arguments[parameter.name]]
    )
    return (launch.name, *given, repr(sorted(launch.options.items())))
