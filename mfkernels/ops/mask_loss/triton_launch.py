"""Focal and dice loss of matched masks at target size, and their gradients.

Forward pass: one matrix product computes the logits of the matched rows at mask resolution; then
each row is upsampled on the fly and summed over its target pixels, first into partial sums, which a
second kernel adds up. If gradients will be needed, the same pass also reduces three parts of the
gradient to mask resolution (the maps); their coefficients depend on the final sums.

Backward pass: the gradient of the logits is a linear combination of the maps; without maps, it is
computed from the logits, which are recomputed. One matrix product per factor follows.

No tensor of target size is ever stored, and there are no atomic additions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.mask_loss.operator import Inputs, maps_shape, new_gradient
from mfkernels.ops.mask_loss.triton_pixels import GradLosses
from mfkernels.ops.mask_loss.triton_problem import Problem
from mfkernels.ops.mask_loss.triton_product_kernels import Sizes
from mfkernels.ops.mask_loss.triton_product_launch import (
    launch_grad_embed,
    launch_grad_embed_sum,
    launch_grad_features,
    launch_logits,
    launch_scatter,
    splits_of,
)
from mfkernels.triton.arguments import SegmentValues


def mask_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `mfkernels::mask_loss`.

    Takes `mask_embed [L, B, Q, C]` with `pixel_features [B, C, h, w]`, or dense logits
    `[L, B, Q, h, w]` with None; `label_map [B, H, W]` int16 or `masks [N, H, W]` bool; `counts [B]`
    and `assignment [L, B, T]`, both int64, where −1 is a segment without a query. Returns `focal`
    and `dice [L, B, T]` and, for the backward pass, `sums [L, B, T, 3]` (Σ s y, Σ s and Σ y) and
    `maps`, `[3, L, N, h·w]` or `[0]`. All results are float32.
    """
    *inputs, keep_maps = arguments
    given = Inputs(*inputs)
    problem = Problem.of(given)
    assignment, shape = given.assignment, given.assignment.shape
    focal = assignment.new_empty(shape, dtype=torch.float32)
    dice = assignment.new_empty(shape, dtype=torch.float32)
    sums = assignment.new_empty((*shape, 3), dtype=torch.float32)
    maps = assignment.new_empty(maps_shape(given, keep_maps), dtype=torch.float32)
    if focal.numel() == 0:
        return focal, dice, sums, maps
    kept = maps if maps.numel() > 0 else None
    partial = problem.at_pixels.partial_sums(maps=kept is not None)
    for sizes, images in problem.groups():
        logits = launch_logits(problem, sizes, images)
        problem.at_pixels.launch(logits, sizes, images, partial=partial, maps=kept)
    problem.at_pixels.launch_totals(problem.sizes, partial, focal, dice, sums)
    return focal, dice, sums, maps


def mask_loss_backward(
    grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, maps: Tensor, *inputs_and_needed: Any
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::mask_loss_backward`.

    Takes `grad_focal` and `grad_dice [L, B, T]`; the others are as in `mask_loss`. Returns the
    gradients of `mask_embed` and of `pixel_features`, `[0]` for one that is not needed or is None.
    """
    *inputs, embed_needed, features_needed = inputs_and_needed
    given = Inputs(*inputs)
    problem = Problem.of(given)
    mask_embed, pixel_features = given.mask_embed, given.pixel_features
    features_needed = features_needed and pixel_features is not None
    features = mask_embed if pixel_features is None else pixel_features
    grad_embed = mask_embed.new_empty(mask_embed.shape if embed_needed else (0,))
    grad_features = new_gradient(features) if features_needed else features.new_empty(0)
    if not (embed_needed or features_needed):
        return grad_embed, grad_features
    if problem.rows == 0:
        return grad_embed.zero_(), grad_features.zero_()
    grad_losses = GradLosses(SegmentValues.of(grad_focal), SegmentValues.of(grad_dice), sums)
    split_embed = embed_needed and problem.features is not None
    partial = sums.new_empty(
        (splits_of(problem), *given.assignment.shape, problem.channels) if split_embed else (0,)
    )
    for sizes, group in problem.groups():
        grad_logits = _grad_logits(problem, sizes, grad_losses, maps, group)
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
    problem: Problem, sizes: Sizes, grad_losses: GradLosses, maps: Tensor, group: int
) -> Tensor:
    """Gradients `[L, rows, h·w]` with respect to the logits of a group's matched segments."""
    grad_logits = problem.workspace(sizes)
    if maps.numel() > 0:
        problem.at_pixels.launch_combination(maps, grad_losses, grad_logits, sizes, group)
    else:
        logits = launch_logits(problem, sizes, group)
        problem.at_pixels.launch(logits, sizes, group, maps=grad_logits, grad_losses=grad_losses)
    return grad_logits
