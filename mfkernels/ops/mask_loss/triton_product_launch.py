"""Launches of the matrix products of the mask loss, and the choice of their tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfkernels.ops.mask_loss.triton_problem import Problem
from mfkernels.ops.mask_loss.triton_product_kernels import (
    ProductBlock,
    Sizes,
    grad_embed_kernel,
    grad_embed_sum_kernel,
    grad_features_kernel,
    logits_kernel,
    scatter_kernel,
)
from mfkernels.triton import devices, launcher
from mfkernels.triton.arguments import Features, Predictions
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.products import Planes

PIXELS_OF_A_SPLIT = 2048


class Tile(NamedTuple):
    """A tile with its launch options: warps per program, and stages of the software pipeline."""

    block: ProductBlock
    warps: int
    stages: int
    registers: int | None = None
    """The limit per thread, where the compiler would use so many that occupancy drops."""


class Tiles(NamedTuple):
    """The tiles for factors in half precision, and for factors that are split into planes."""

    half: Tile
    single: Tile


FROM_SHARED_MEMORY = {
    "logits": Tiles(
        half=Tile(ProductBlock(rows=64, channels=64, pixels=64), warps=4, stages=3),
        single=Tile(ProductBlock(rows=64, channels=32, pixels=128), warps=4, stages=4),
    ),
    "grad_embed": Tiles(
        half=Tile(ProductBlock(rows=64, channels=128, pixels=64), warps=8, stages=3),
        single=Tile(ProductBlock(rows=64, channels=128, pixels=32), warps=4, stages=3),
    ),
    "grad_features": Tiles(
        half=Tile(
            ProductBlock(rows=64, channels=128, pixels=128), warps=8, stages=1, registers=128
        ),
        single=Tile(ProductBlock(rows=64, channels=64, pixels=64), warps=4, stages=1),
    ),
}
"""For GPUs whose matrix units read factors from shared memory. The `single` tiles of the logits and
of the gradient of the embeddings spill some registers; with 8 warps, they would not, but take 1.1
to 1.2 times as long."""

FROM_REGISTERS = {
    "logits": Tiles(
        half=Tile(ProductBlock(rows=64, channels=64, pixels=128), warps=8, stages=3),
        single=Tile(ProductBlock(rows=64, channels=32, pixels=64), warps=8, stages=3),
    ),
    "grad_embed": Tiles(
        half=Tile(ProductBlock(rows=64, channels=128, pixels=32), warps=8, stages=4),
        single=Tile(ProductBlock(rows=64, channels=64, pixels=32), warps=8, stages=3),
    ),
    "grad_features": Tiles(
        half=Tile(ProductBlock(rows=32, channels=128, pixels=64), warps=4, stages=1),
        single=Tile(ProductBlock(rows=32, channels=64, pixels=64), warps=4, stages=1),
    ),
}
"""For all other GPUs with matrix units, whether these read factors from registers or have tensor
memory: small enough not to spill, and with at most 99 KB of shared memory."""

IN_FLOAT32 = Tile(ProductBlock(rows=64, channels=64, pixels=32), warps=8, stages=1)
"""For GPUs without matrix units for these products; uses few registers and little shared memory."""
HALF_IN_FLOAT32 = Tile(ProductBlock(rows=64, channels=32, pixels=32), warps=8, stages=1)
"""The same for factors in half precision; converting them to float32 takes more registers."""


def tile_of(
    product: str, planes: Planes, problem: Problem, pixels_of_split: int = 0
) -> tuple[ProductBlock, dict[str, int]]:
    """Choose the tile of a matrix product: the kernel argument and the launch options."""
    generation = devices.gpu_of(problem.embed.device).generation
    factors = generation.factors
    tiles = (FROM_SHARED_MEMORY if factors == "shared memory" else FROM_REGISTERS)[product]
    tile, more_rows = HALF_IN_FLOAT32 if planes.a > 0 else IN_FLOAT32, 0
    if planes.a > 0 and factors is not None:
        tile = tiles.single if planes.a > 1 or planes.order == 2 else tiles.half
        rows = tile.block.rows
        if product == "grad_features":  # rows are the reduction axis
            rows = min((rows, 32), key=lambda size: padded(problem.rows, size))
            tile = tile._replace(block=tile.block._replace(rows=rows))
        elif generation.copies_asynchronously:  # otherwise, loads take too many registers as well
            more_rows = min((0, 16), key=lambda more: padded(problem.rows, rows + more))
    block = tile.block._replace(more_rows=more_rows, pixels_of_split=pixels_of_split)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return block, options if tile.registers is None else options | {"maxnreg": tile.registers}


def padded(rows: int, tile: int) -> int:
    """The number of rows, rounded up to whole tiles."""
    return cdiv(rows, tile) * tile


def splits_of(problem: Problem) -> int:
    """The number of splits of a product whose reduction axis is the pixels (split-K)."""
    return cdiv(problem.pixels, PIXELS_OF_A_SPLIT)


def launch_logits(problem: Problem, sizes: Sizes, group: int) -> Predictions:
    """Compute the logits of a group's matched segments; dense logits are returned as they are."""
    if problem.features is None:
        return Predictions.of(problem.embed, dense=True)
    logits = problem.workspace(sizes)
    planes = Planes.of(problem.features.dtype, problem.embed.dtype, device=logits.device)
    block, options = tile_of("logits", planes, problem)
    launcher.launch(
        logits_kernel,
        (
            cdiv(problem.pixels, block.pixels) * cdiv(problem.rows, block.rows + block.more_rows),
            1,
            group,
        ),
        embed=Predictions.of(problem.embed, dense=False),
        features=Features.of(problem.features),
        logits_ptr=logits,
        PLANES=planes,
        BLOCK=block,
        **problem.arguments(sizes),
        **options,
    )
    # Kernels use only the pixel stride of a workspace; they compute row offsets themselves.
    return Predictions(logits, layer_stride=0, image_stride=0, query_stride=0, pixel_stride=1)


def launch_scatter(
    problem: Problem, sizes: Sizes, grad_matched: Tensor, grad_logits: Tensor, group: int
) -> None:
    """Fill a group's part of the gradients `[L, B, Q, h, w]` with respect to dense logits."""
    launcher.launch(
        scatter_kernel,
        (cdiv(problem.pixels, 1024), sizes.layers * sizes.queries, group),
        grad_matched_ptr=grad_matched,
        grad_logits_ptr=grad_logits,
        BLOCK=1024,
        **problem.arguments(sizes),
        num_warps=4,
    )


def launch_grad_embed(
    problem: Problem, sizes: Sizes, grad_logits: Tensor, partial: Tensor, group: int
) -> None:
    """Fill a group's part of `partial [splits, L, B, T, C]`."""
    assert problem.features is not None
    embed, features = problem.embed, problem.features
    planes = Planes.of(features.dtype, torch.float32, embed.dtype, device=embed.device)
    block, options = tile_of("grad_embed", planes, problem, PIXELS_OF_A_SPLIT)
    tiles = cdiv(problem.rows, block.rows + block.more_rows) * cdiv(
        problem.channels, block.channels
    )
    launcher.launch(
        grad_embed_kernel,
        (tiles, splits_of(problem), group),
        grad_ptr=grad_logits,
        features=Features.of(problem.features),
        partial_ptr=partial,
        PLANES=planes,
        BLOCK=block,
        **problem.arguments(sizes),
        **options,
    )


def launch_grad_embed_sum(problem: Problem, partial: Tensor, grad_embed: Tensor) -> None:
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
        num_warps=8,
    )


def launch_grad_features(
    problem: Problem, sizes: Sizes, grad_logits: Tensor, grad_features: Tensor, group: int
) -> None:
    """Fill a group's part of `grad_features [B, C, h, w]`."""
    assert problem.features is not None
    embed, features = problem.embed, problem.features
    planes = Planes.of(embed.dtype, torch.float32, features.dtype, device=embed.device)
    block, options = tile_of("grad_features", planes, problem)
    launcher.launch(
        grad_features_kernel,
        (cdiv(problem.pixels, block.pixels), cdiv(problem.channels, block.channels), group),
        grad_ptr=grad_logits,
        embed=Predictions.of(problem.embed, dense=False),
        grad_features=Features.of(grad_features),
        PLANES=planes,
        BLOCK=block,
        **problem.arguments(sizes),
        **options,
    )
