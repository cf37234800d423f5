"""Launches of the products of the mask loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mfkernels.ops.mask_loss.triton_rows import (
    ProductBlock,
    Sizes,
    grad_embed_kernel,
    grad_embed_sum_kernel,
    grad_features_kernel,
    logits_kernel,
    scatter_kernel,
)
from mfkernels.triton import launcher
from mfkernels.triton.arguments import Features, Predictions, Product
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.tensors import float32_precision

if TYPE_CHECKING:
    from mfkernels.ops.mask_loss.triton_launch import _Problem

PIXELS_OF_A_SPLIT = 2048


def splits_of(problem: _Problem) -> int:
    """Into how many parts a product over all pixels is cut."""
    return cdiv(problem.pixels, PIXELS_OF_A_SPLIT)


def launch_logits(problem: _Problem, sizes: Sizes, group: int) -> Predictions:
    """Logits of the matched segments of a group; dense ones are there already."""
    if problem.features is None:
        return Predictions.of(problem.embed, dense=True)
    logits = problem.workspace(group)
    block = ProductBlock(rows=64, pixels=64, channels=32)
    launcher.launch(
        logits_kernel,
        (cdiv(problem.pixels, block.pixels), cdiv(problem.rows, block.rows), group),
        embed=Predictions.of(problem.embed, dense=False),
        features=Features.of(problem.features),
        matching=problem.matching,
        logits_ptr=logits,
        sizes=problem.product_sizes(sizes),
        PRODUCT=Product.of(problem.embed, problem.features),
        BLOCK=block,
        num_warps=8,
        num_stages=3,
    )
    # Of a workspace only pixels are asked for.
    return Predictions(logits, layer=0, image=0, query=0, pixel=1)


def launch_scatter(
    problem: _Problem, sizes: Sizes, grad_matched: Tensor, grad_logits: Tensor, group: int
) -> None:
    """Fill a group's part of the gradients `[L, B, Q, h, w]` of dense logits."""
    launcher.launch(
        scatter_kernel,
        (cdiv(problem.pixels, 1024), sizes.layers * sizes.queries, group),
        grad_matched_ptr=grad_matched,
        matching=problem.matching,
        grad_logits_ptr=grad_logits,
        sizes=problem.product_sizes(sizes),
        BLOCK=1024,
        num_warps=4,
    )


def launch_grad_embed(
    problem: _Problem, sizes: Sizes, grad_logits: Tensor, partial: Tensor, group: int
) -> None:
    """Fill a group's part of `partial [splits, L, B, T, C]`."""
    assert problem.features is not None
    block = ProductBlock(rows=32, channels=64, pixels=32, pixels_of_split=PIXELS_OF_A_SPLIT)
    tiles = cdiv(problem.rows, block.rows) * cdiv(problem.channels, block.channels)
    launcher.launch(
        grad_embed_kernel,
        (splits_of(problem), tiles, group),
        grad_ptr=grad_logits,
        features=Features.of(problem.features),
        matching=problem.matching,
        partial_ptr=partial,
        sizes=problem.product_sizes(sizes),
        PRECISION=float32_precision(),
        BLOCK=block,
        num_warps=8,
        num_stages=3,
    )


def launch_grad_embed_sum(problem: _Problem, partial: Tensor, grad_embed: Tensor) -> None:
    """Fill `grad_embed [L, B, Q, C]` from `partial [splits, L, B, T, C]`."""
    sizes = problem.sizes
    launcher.launch(
        grad_embed_sum_kernel,
        (sizes.layers * sizes.queries, cdiv(problem.channels, 256), sizes.images),
        partial_ptr=partial,
        matching=problem.matching,
        grad_embed_ptr=grad_embed,
        sizes=problem.product_sizes(sizes),
        splits=splits_of(problem),
        BLOCK_C=256,
        num_warps=4,
    )


def launch_grad_features(
    problem: _Problem, sizes: Sizes, grad_logits: Tensor, grad_features: Tensor, group: int
) -> None:
    """Fill a group's part of `grad_features [B, C, h, w]`."""
    block = ProductBlock(rows=32, channels=64, pixels=64)
    launcher.launch(
        grad_features_kernel,
        (cdiv(problem.pixels, block.pixels), cdiv(problem.channels, block.channels), group),
        grad_ptr=grad_logits,
        embed=Predictions.of(problem.embed, dense=False),
        matching=problem.matching,
        grad_features_ptr=grad_features,
        sizes=problem.product_sizes(sizes),
        PRECISION=float32_precision(),
        BLOCK=block,
        num_warps=8,
        num_stages=2,
    )
