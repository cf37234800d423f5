"""Focal and dice loss of matched masks at target size, and their gradients.

Forward: logits of the matched rows at mask resolution (one product), sums over the target pixels of
each row (partial, then joined). Backward: the same logits again, the gradient of the losses brought
down to mask resolution, then one product for the gradient of each factor. Nothing of target size is
ever stored, and nothing is added atomically.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.mask_loss.operator import Inputs
from mfkernels.ops.mask_loss.triton_pixels import (
    Axis,
    Block,
    Resize,
    Variant,
    grad_logits_kernel,
    loss_kernel,
    totals_kernel,
)
from mfkernels.ops.mask_loss.triton_products import (
    launch_grad_embed,
    launch_grad_embed_sum,
    launch_grad_features,
    launch_logits,
    launch_scatter,
    splits_of,
)
from mfkernels.ops.mask_loss.triton_rows import Matching, ProductSizes, Sizes
from mfkernels.triton import launcher
from mfkernels.triton.arguments import FocalParameters, Predictions, SegmentValues
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import (
    check_floats,
    stored_segments,
    with_flat_pixels,
)

WORKSPACE = 1 << 25
"""Elements of a workspace of logits or gradients (128 MiB), or half of those of the pixel features,
if these are more; a larger batch goes in groups.
"""

CELLS_OF_A_PROGRAM = 512
MASK_ROWS_OF_A_PROGRAM = 32


@dataclass(frozen=True)
class _Problem:
    """The tensors of a call as kernels read them, and the arguments that launches share."""

    embed: Tensor
    """Embeddings, or dense logits."""
    features: Tensor | None
    segments: Tensor
    matching: Matching
    sizes: Sizes
    channels: int
    resize: Resize
    focal: FocalParameters
    variant: Variant

    @property
    def rows(self) -> int:
        """The most matched segments of an image, all layers together."""
        return self.sizes.layers * self.sizes.max_count

    @property
    def pixels(self) -> int:
        """Of a mask."""
        return self.resize.y.size * self.resize.x.size

    def block(self, mask_rows: int = 1) -> Block:
        images = min(power_of_2(self.sizes.images), 64)
        return Block(cells=CELLS_OF_A_PROGRAM, images=images, mask_rows=mask_rows)

    def groups(self) -> Iterator[tuple[Sizes, int]]:
        """The sizes with the first image of each group, and how many images it has."""
        images, per_image = self.sizes.images, max(self.rows * self.pixels, 1)
        features = 0 if self.features is None else self.features.numel()
        group = max(1, min(images, max(WORKSPACE, features // 2) // per_image))
        for first in range(0, images, group):
            yield self.sizes._replace(first_image=first), min(group, images - first)

    def product_sizes(self, sizes: Sizes) -> ProductSizes:
        return ProductSizes(**sizes._asdict(), channels=self.channels, pixels=self.pixels)

    def workspace(self, group: int) -> Tensor:
        """New memory for `[L, group, T, h·w]`."""
        shape = (self.sizes.layers, group, self.sizes.max_count, self.pixels)
        return self.matching.assignment_ptr.new_empty(shape, dtype=torch.float32)


def _problem(given: Inputs) -> _Problem:
    check_floats("mask_loss", given.mask_embed, given.pixel_features)
    embed, features = given.mask_embed, None
    if given.pixel_features is None:
        embed = with_flat_pixels(embed)
    else:
        features = with_flat_pixels(given.pixel_features)
    segments = stored_segments(given.label_map, given.masks)
    height, width = (embed if features is None else features).shape[-2:]
    target_height, target_width = segments.shape[-2:]
    if 4 * (height + 1) * target_height >= 2**31 or 4 * (width + 1) * target_width >= 2**31:
        raise ValueError(
            "masks and targets are too large for 32-bit positions: "
            f"{height}x{width} and {target_height}x{target_width}"
        )
    layers, images, queries = embed.shape[:3]
    whole = target_height % height == 0 and target_width % width == 0
    return _Problem(
        embed=embed,
        features=features,
        segments=segments,
        matching=Matching(given.assignment.contiguous(), given.counts),
        sizes=Sizes(
            first_image=0,
            images=images,
            layers=layers,
            queries=queries,
            max_count=given.assignment.shape[2],
        ),
        channels=1 if features is None else embed.shape[3],
        resize=Resize(_axis(height, target_height, whole), _axis(width, target_width, whole)),
        focal=FocalParameters.of(given.alpha, given.gamma),
        variant=Variant(
            factored=features is not None,
            label_map=given.label_map is not None,
            square=given.gamma == 2,
            whole=whole,
        ),
    )


def _axis(size: int, target_size: int, whole: bool) -> Axis:
    ratio = target_size // size
    weights = (1 / ratio, (1 - ratio % 2) / (2 * ratio)) if whole else (0.5 / target_size, 0.0)
    return Axis(size, target_size, cdiv(target_size, size), *weights)


def mask_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `mfkernels::mask_loss`.

    `mask_embed [L, B, Q, C]` with `pixel_features [B, C, h, w]`, or dense logits `[L, B, Q, h, w]`
    with none; `label_map [B, H, W]`, int16, or `masks [N, H, W]`, bool; `counts [B]` and
    `assignment [L, B, T]`, int64, −1 for a segment without a query. Returns `focal` and
    `dice [L, B, T]` and, for the backward pass, `sums [L, B, T, 3]`: Σ s y, Σ s and Σ y. All
    results are float32.
    """
    given = Inputs(*arguments)
    problem = _problem(given)
    assignment, shape = given.assignment, given.assignment.shape
    focal = assignment.new_empty(shape, dtype=torch.float32)
    dice = assignment.new_empty(shape, dtype=torch.float32)
    sums = assignment.new_empty((*shape, 3), dtype=torch.float32)
    if focal.numel() == 0:
        return focal, dice, sums
    resize = problem.resize
    chunks = cdiv((resize.y.size + 1) * (resize.x.size + 1), CELLS_OF_A_PROGRAM)
    partial = assignment.new_empty((*shape, chunks, 4), dtype=torch.float32)
    for sizes, group in problem.groups():
        _launch_losses(problem, sizes, launch_logits(problem, sizes, group), partial, group)
    launcher.launch(
        totals_kernel,
        (cdiv(focal.numel(), 32),),
        partial_ptr=partial,
        matching=problem.matching,
        focal_ptr=focal,
        dice_ptr=dice,
        sums_ptr=sums,
        sizes=problem.sizes,
        chunks=chunks,
        rows=focal.numel(),
        target_pixels=float(resize.y.target_size * resize.x.target_size),
        BLOCK=32,
        num_warps=1,
    )
    return focal, dice, sums


def _launch_losses(
    problem: _Problem, sizes: Sizes, logits: Predictions, partial: Tensor, group: int
) -> None:
    """Fill a group's part of `partial [L, B, T, chunks, 4]`."""
    launcher.launch(
        loss_kernel,
        (partial.shape[3], problem.rows, group),
        logits=logits,
        segments_ptr=problem.segments,
        matching=problem.matching,
        partial_ptr=partial,
        sizes=sizes,
        resize=problem.resize,
        focal=problem.focal,
        VARIANT=problem.variant,
        BLOCK=problem.block(),
        num_warps=4,
        maxnreg=128,  # as for the gradients
    )


def mask_loss_backward(
    grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, *inputs_and_needed: Any
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::mask_loss_backward`.

    `grad_focal` and `grad_dice [L, B, T]`; the others as in `mask_loss`. Returns the gradients of
    `mask_embed` and of `pixel_features`, `[0]` for one that is not needed or not there.
    """
    *inputs, embed_needed, features_needed = inputs_and_needed
    given = Inputs(*inputs)
    problem = _problem(given)
    mask_embed, pixel_features = given.mask_embed, given.pixel_features
    features_needed = features_needed and pixel_features is not None
    features = mask_embed if pixel_features is None else pixel_features
    grad_embed = mask_embed.new_empty(mask_embed.shape if embed_needed else (0,))
    grad_features = features.new_empty(features.shape if features_needed else (0,))
    if not (embed_needed or features_needed):
        return grad_embed, grad_features
    if problem.rows == 0:
        return grad_embed.zero_(), grad_features.zero_()
    grads = SegmentValues.of(grad_focal), SegmentValues.of(grad_dice)
    split_embed = embed_needed and problem.features is not None
    partial = sums.new_empty(
        (splits_of(problem), *given.assignment.shape, problem.channels) if split_embed else (0,)
    )
    for sizes, group in problem.groups():
        grad_logits = _grad_logits(problem, sizes, grads, sums, group)
        if problem.features is None:
            launch_scatter(problem, sizes, grad_logits, grad_embed, group)
        elif embed_needed:
            launch_grad_embed(problem, sizes, grad_logits, partial, group)
        if features_needed:
            launch_grad_features(problem, sizes, grad_logits, grad_features, group)
    if split_embed:
        launch_grad_embed_sum(problem, partial, grad_embed)
    return grad_embed, grad_features


def _grad_logits(
    problem: _Problem,
    sizes: Sizes,
    grads: tuple[SegmentValues, SegmentValues],
    sums: Tensor,
    group: int,
) -> Tensor:
    """Gradients `[L, group, T, h·w]` of the logits of a group's matched segments.

    `grads`: of the focal and of the dice loss.
    """
    logits = launch_logits(problem, sizes, group)
    grad_logits = problem.workspace(group)
    launcher.launch(
        grad_logits_kernel,
        (
            cdiv(problem.rows * (problem.resize.x.size + 1), CELLS_OF_A_PROGRAM - 1),
            cdiv(problem.resize.y.size, MASK_ROWS_OF_A_PROGRAM),
            group,
        ),
        logits=logits,
        segments_ptr=problem.segments,
        matching=problem.matching,
        sums_ptr=sums,
        grad_focal=grads[0],
        grad_dice=grads[1],
        grad_logits_ptr=grad_logits,
        sizes=sizes,
        resize=problem.resize,
        focal=problem.focal,
        VARIANT=problem.variant,
        BLOCK=problem.block(MASK_ROWS_OF_A_PROGRAM),
        num_warps=8,
        maxnreg=128,  # without it ptxas may spill a little to have another program at a time
    )
    return grad_logits
