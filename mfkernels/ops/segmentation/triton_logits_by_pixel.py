"""Mask logits of chosen queries in a chosen order, and their values at pixels of a result.

Inference reads the same low-resolution logits for many pixels, and all queries at a time: they are
stored by pixel, `[h·w, columns]`, one column per query, as many columns as whole chunks have.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.arguments import Features, Predictions, Product
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.math import neighbours, sigmoid
from mfkernels.triton.tensors import with_flat_pixels

CHUNK = 32
"""Queries that a program handles at a time."""


class Block(NamedTuple):
    """How many of each a program takes at a time."""

    pixels: int
    queries: int
    channels: int


@triton.jit
def by_pixel_kernel(
    embed,
    features,
    order_ptr,
    logits_ptr,
    columns,
    channels,
    pixels,
    FACTORED: tl.constexpr,
    PRODUCT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`logits [h·w, columns]` of the queries `order [columns]`, 0 where that is −1."""
    BLOCK_P: tl.constexpr = BLOCK.pixels
    BLOCK_Q: tl.constexpr = BLOCK.queries
    column = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = tl.load(order_ptr + column, mask=column < columns, other=-1)
    if tl.max(query) >= 0:
        p = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
        query_ptr = embed.ptr + query.to(tl.int64) * embed.query
        if FACTORED:
            x = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
            for start in range(0, channels, BLOCK.channels):
                c = (start + tl.arange(0, BLOCK.channels)).to(tl.int64)
                e = tl.load(
                    query_ptr[None, :] + c[:, None] * embed.channel,
                    mask=(query >= 0)[None, :] & (c < channels)[:, None],
                    other=0.0,
                )
                f = tl.load(
                    features.ptr + p[:, None] * features.pixel + c[None, :] * features.channel,
                    mask=(p < pixels)[:, None] & (c < channels)[None, :],
                    other=0.0,
                )
                if not PRODUCT.half:
                    e = e.to(tl.float32)
                    f = f.to(tl.float32)
                x = tl.dot(f, e, x, input_precision=PRODUCT.precision)
            # Infinite features would make NaN of a column without a query.
            x = tl.where((query >= 0)[None, :], x, 0.0)
        else:
            x = tl.load(
                query_ptr[None, :] + p[:, None] * embed.pixel,
                mask=(query >= 0)[None, :] & (p < pixels)[:, None],
                other=0.0,
            ).to(tl.float32)
        tl.store(
            logits_ptr + p[:, None] * columns + column[None, :],
            x,
            mask=(p < pixels)[:, None] & (column < columns)[None, :],
        )


def columns_of(queries: int) -> int:
    """How many columns the queries take: whole chunks, at least one."""
    return max(cdiv(queries, CHUNK), 1) * CHUNK


def logits_by_pixel(
    mask_embed: Tensor, pixel_features: Tensor | None, order: Tensor, logits: Tensor
) -> None:
    """Fill `logits [h·w, columns]`, float32, for the queries `order [columns]` (−1: none).

    `mask_embed [Q, C]` and `pixel_features [C, h, w]`, or dense logits `[Q, h, w]` and none.
    """
    factored = pixel_features is not None
    features = with_flat_pixels(mask_embed if pixel_features is None else pixel_features)
    embed = mask_embed if factored else features
    pixels, columns = logits.shape
    block = Block(pixels=64, queries=128, channels=32)
    launcher.launch(
        by_pixel_kernel,
        (cdiv(pixels, block.pixels), cdiv(columns, block.queries)),
        embed=Predictions.of(embed, dense=not factored),
        features=Features.of(features) if factored else Features(features),
        order_ptr=order,
        logits_ptr=logits,
        columns=columns,
        channels=mask_embed.shape[1] if factored else 1,
        pixels=pixels,
        FACTORED=factored,
        PRODUCT=Product.of(embed, features),
        BLOCK=block,
        num_warps=8,
        num_stages=3,
    )


@triton.jit
def interpolated(logits_ptr, columns, q, y, x, vertical, horizontal):
    """Logits `[P, queries]` at pixels of the input, from `logits [h·w, columns]`."""
    top, bottom, weight_y = neighbours(y, vertical.mask, vertical.input)
    left, right, weight_x = neighbours(x, horizontal.mask, horizontal.input)
    width = horizontal.mask
    a = tl.load(logits_ptr + ((top * width + left).to(tl.int64) * columns)[:, None] + q[None, :])
    b = tl.load(logits_ptr + ((top * width + right).to(tl.int64) * columns)[:, None] + q[None, :])
    c = tl.load(logits_ptr + ((bottom * width + left).to(tl.int64) * columns)[:, None] + q[None, :])
    d = tl.load(
        logits_ptr + ((bottom * width + right).to(tl.int64) * columns)[:, None] + q[None, :]
    )
    upper = (1.0 - weight_x)[:, None] * a + weight_x[:, None] * b
    lower = (1.0 - weight_x)[:, None] * c + weight_x[:, None] * d
    return (1.0 - weight_y)[:, None] * upper + weight_y[:, None] * lower


@triton.jit
def mask_values(
    logits_ptr,
    columns,
    q,
    y,
    x,
    vertical,
    horizontal,
    RESIZED: tl.constexpr,
    RESIZE_LOGITS: tl.constexpr,
):
    """Sigmoids `[P, queries]` of masks at pixels (y, x) of the result.

    Logits go to the input, of which the image is the upper left part, and from there to the result
    where that has another size (RESIZED), before the sigmoid (RESIZE_LOGITS) or after it.
    """
    if not RESIZED:
        return sigmoid(interpolated(logits_ptr, columns, q, y, x, vertical, horizontal))
    top, bottom, weight_y = neighbours(y, vertical.image, vertical.result)
    left, right, weight_x = neighbours(x, horizontal.image, horizontal.result)
    total = tl.zeros([y.shape[0], q.shape[0]], tl.float32)
    # Unrolled, the loop would keep the addresses of 16 logits in registers.
    for corner in range(4):
        lower, righter = corner >= 2, corner % 2 == 1
        weight = tl.where(lower, weight_y, 1.0 - weight_y)
        weight *= tl.where(righter, weight_x, 1.0 - weight_x)
        corner_y = tl.where(lower, bottom, top)
        corner_x = tl.where(righter, right, left)
        value = interpolated(logits_ptr, columns, q, corner_y, corner_x, vertical, horizontal)
        total += weight[:, None] * (value if RESIZE_LOGITS else sigmoid(value))
    return sigmoid(total) if RESIZE_LOGITS else total
