"""The operators `mask_loss` and `mask_loss_backward`.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfkernels.checks import check_focal, result_dtype
from mfkernels.ops.common.arguments import (
    check_argument,
    check_prediction_arguments,
    check_segments,
)
from mfkernels.ops.common.registration import differentiable_again, or_zeros, register, save
from mfkernels.ops.mask_loss import reference
from mfkernels.targets import SegmentTargets

TRITON = "mfkernels.ops.mask_loss.triton_launch"

MAX_MAP_BYTES = 1 << 30
"""On a GPU, the most memory that the forward pass may use to save gradient maps for the backward
pass.

The maps take 12 bytes per mask pixel of each segment in each layer, about 1/50 of what plain
PyTorch saves if targets are four times as large as masks. If they would need more, the backward
pass recomputes them.
"""


class Inputs(NamedTuple):
    """The arguments that `mask_loss` and `mask_loss_backward` have in common."""

    mask_embed: Tensor
    pixel_features: Tensor | None
    label_map: Tensor | None
    masks: Tensor | None
    counts: Tensor
    assignment: Tensor
    num_segments: int
    """N, of all images together: the sum of `counts`, or the capacity if only the device knows it
    (see `SegmentTargets.of_capacity`)."""
    alpha: float
    gamma: float


def most_kept(layers: int, pixels: int) -> int:
    """Return the largest number of segments whose gradient maps may be saved."""
    return MAX_MAP_BYTES // max(12 * layers * pixels, 1)


def maps_shape(given: Inputs, keep_maps: bool) -> tuple[int, ...]:
    """Return the shape of the gradient maps that the forward pass on a GPU saves.

    It is `[3, L, N, h·w]` with N segments in all images, or `[0]` if none are saved.
    """
    like = given.mask_embed if given.pixel_features is None else given.pixel_features
    pixels = like.shape[-2] * like.shape[-1]
    layers = given.assignment.shape[0]
    if not keep_maps or given.num_segments > most_kept(layers, pixels):
        return (0,)
    return 3, layers, given.num_segments, pixels


def check(*arguments: Any) -> None:
    *inputs, _keep_maps = arguments
    check_inputs(Inputs(*inputs))


def check_inputs(given: Inputs) -> None:
    check_prediction_arguments(given.mask_embed, given.pixel_features)
    layers, images = given.mask_embed.shape[:2]
    check_argument(
        "assignment", given.assignment, (layers, images, "T"), given.mask_embed, torch.int64
    )
    check_segments(given.label_map, given.masks, given.counts, given.mask_embed, images)
    if given.num_segments < 0:
        raise ValueError(f"num_segments must be at least 0, got {given.num_segments}")
    check_focal(given.alpha, given.gamma)


def check_backward(
    grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, maps: Tensor, *inputs_and_needed: Any
) -> None:
    *inputs, _embed_needed, _features_needed = inputs_and_needed
    given = Inputs(*inputs)
    check_inputs(given)
    shape, like = given.assignment.shape, given.mask_embed
    dtype = result_dtype(like, given.pixel_features)
    check_argument("grad_focal", grad_focal, shape, like, dtype)
    check_argument("grad_dice", grad_dice, shape, like, dtype)
    check_argument("sums", sums, (*shape, 3), like, dtype)
    if maps.shape != (0,):
        check_argument("maps", maps, maps_shape(given, True), like, dtype)


def fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep_maps = arguments
    given = Inputs(*inputs)
    on_gpu = given.mask_embed.device.type == "cuda"
    shape, dtype = given.assignment.shape, result_dtype(given.mask_embed, given.pixel_features)
    shapes = (shape, shape, (*shape, 3), maps_shape(given, keep_maps and on_gpu))
    return tuple(given.assignment.new_empty(shape, dtype=dtype) for shape in shapes)


def fake_backward(
    grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, maps: Tensor, *inputs_and_needed: Any
) -> tuple[Tensor, Tensor]:
    mask_embed, pixel_features, *_, embed_needed, features_needed = inputs_and_needed
    grad_embed = mask_embed.new_empty(mask_embed.shape if embed_needed else (0,))
    if pixel_features is None or not features_needed:
        return grad_embed, (mask_embed if pixel_features is None else pixel_features).new_empty(0)
    return grad_embed, new_gradient(pixel_features)


def new_gradient(features: Tensor) -> Tensor:
    """Allocate the gradient of features in the memory format of the features.

    The backward pass of the convolution that made them would otherwise have to convert it.
    """
    is_channels_last = features.stride(1) < features.stride(3)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    return torch.empty_like(features, memory_format=layout)


def plain(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, _keep_maps = arguments
    given = Inputs(*inputs)
    # The reference needs the counts on the host. The losses do not depend on the labels.
    counts = tuple(given.counts.tolist())
    labels = given.counts.new_zeros(sum(counts))
    targets = SegmentTargets(labels, counts, given.label_map, given.masks)
    return reference.losses_of_segments(
        given.mask_embed,
        given.pixel_features,
        targets,
        given.assignment,
        given.alpha,
        given.gamma,
    )


@differentiable_again("mask_loss", plain)
def backward(
    ctx: Any, grad_focal: Tensor | None, grad_dice: Tensor | None, *_grads_of_saved: None
) -> tuple[Tensor | None, ...]:
    sums, maps, *tensors = ctx.saved_tensors
    *options, _keep_maps = ctx.options
    needed = ctx.needs_input_grad[:2]
    gradients = torch.ops.mfkernels.mask_loss_backward(
        or_zeros(grad_focal, sums[..., 0]),
        or_zeros(grad_dice, sums[..., 0]),
        sums,
        maps,
        *tensors,
        *options,
        *needed,
    )
    used = [grad if need else None for grad, need in zip(gradients, needed, strict=True)]
    return (*used, *[None] * 8)


register("mask_loss_backward", check=check_backward, fake=fake_backward, triton=TRITON)
register(
    "mask_loss",
    check=check,
    fake=fake,
    triton=TRITON,
    setup_context=save(2, 3),
    backward=backward,
)
