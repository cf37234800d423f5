"""Mask logits of chosen queries in a chosen order, and their values at pixels of a result.

Inference reads the same low-resolution logits for many pixels, and all queries at a time: they are
stored by pixel, `[h·w, columns]`, one column a query, as many columns as whole chunks have.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.math import neighbours, sigmoid
from mfkernels.triton.tensors import HALVES, float32_precision, pixel_stride, with_flat_pixels

CHUNK = 32
"""Queries that a program handles at a time."""


@triton.jit
def by_pixel_kernel(
    embed,
    features,
    order,
    logits,
    columns,
    channels,
    pixels,
    embed_query,
    embed_channel,
    features_channel,
    features_pixel,
    FACTORED: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`logits [h·w, columns]` of the queries `order [columns]`, 0 where that is −1."""
    column = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = tl.load(order + column, mask=column < columns, other=-1)
    if tl.max(query) >= 0:
        p = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
        start = embed + query.to(tl.int64) * embed_query
        if FACTORED:
            x = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
            for start_c in range(0, channels, BLOCK_C):
                c = (start_c + tl.arange(0, BLOCK_C)).to(tl.int64)
                e = tl.load(
                    start[None, :] + c[:, None] * embed_channel,
                    mask=(query >= 0)[None, :] & (c < channels)[:, None],
                    other=0.0,
                )
                f = tl.load(
                    features + p[:, None] * features_pixel + c[None, :] * features_channel,
                    mask=(p < pixels)[:, None] & (c < channels)[None, :],
                    other=0.0,
                )
                if not HALF:
                    e = e.to(tl.float32)
                    f = f.to(tl.float32)
                x = tl.dot(f, e, x, input_precision=PRECISION)
            # Infinite features would make NaN of a column without a query.
            x = tl.where((query >= 0)[None, :], x, 0.0)
        else:
            # `embed_channel` is the step from pixel to pixel where embed holds logits.
            x = tl.load(
                start[None, :] + p[:, None] * embed_channel,
                mask=(query >= 0)[None, :] & (p < pixels)[:, None],
                other=0.0,
            ).to(tl.float32)
        tl.store(
            logits + p[:, None] * columns + column[None, :],
            x,
            mask=(p < pixels)[:, None] & (column < columns)[None, :],
        )


def columns_of(queries: int) -> int:
    """Columns for some queries: whole chunks, at least one."""
    return max(cdiv(queries, CHUNK), 1) * CHUNK


def logits_by_pixel(
    mask_embed: Tensor, pixel_features: Tensor | None, order: Tensor, logits: Tensor
) -> None:
    """Fill `logits [h·w, columns]` for the queries `order [columns]` (−1: none) of one image."""
    factored = pixel_features is not None
    features = with_flat_pixels(mask_embed if pixel_features is None else pixel_features)
    embed = mask_embed if factored else features
    pixels, columns = logits.shape
    launcher.launch(
        by_pixel_kernel,
        (cdiv(pixels, 64), cdiv(columns, 128)),
        embed,
        features,
        order,
        logits,
        columns,
        mask_embed.shape[1] if factored else 1,
        pixels,
        embed.stride(0),
        embed.stride(1) if factored else pixel_stride(embed),
        features.stride(0),
        pixel_stride(features),
        FACTORED=factored,
        HALF=embed.dtype == features.dtype and embed.dtype in HALVES,
        PRECISION=float32_precision(),
        BLOCK_P=64,
        BLOCK_Q=128,
        BLOCK_C=32,
        num_warps=8,
        num_stages=3,
    )


@triton.jit
def interpolated(logits, columns, q, y, x, height, width, input_height, input_width):
    """Logits `[P, queries]` at pixels of the input, from `logits [h·w, columns]`."""
    top, bottom, weight_y = neighbours(y, height, input_height)
    left, right, weight_x = neighbours(x, width, input_width)
    a = tl.load(logits + ((top * width + left).to(tl.int64) * columns)[:, None] + q[None, :])
    b = tl.load(logits + ((top * width + right).to(tl.int64) * columns)[:, None] + q[None, :])
    c = tl.load(logits + ((bottom * width + left).to(tl.int64) * columns)[:, None] + q[None, :])
    d = tl.load(logits + ((bottom * width + right).to(tl.int64) * columns)[:, None] + q[None, :])
    upper = (1.0 - weight_x)[:, None] * a + weight_x[:, None] * b
    lower = (1.0 - weight_x)[:, None] * c + weight_x[:, None] * d
    return (1.0 - weight_y)[:, None] * upper + weight_y[:, None] * lower


@triton.jit
def mask_values(
    logits,
    columns,
    q,
    y,
    x,
    height,
    width,
    input_height,
    input_width,
    image_height,
    image_width,
    result_height,
    result_width,
    RESIZED: tl.constexpr,
    RESIZE_LOGITS: tl.constexpr,
):
    """Sigmoids `[P, queries]` of masks at pixels (y, x) of the result.

    Logits go to the input, of which the image is the upper left part, and from there to the result
    where that has another size (RESIZED), before the sigmoid (RESIZE_LOGITS) or after it.
    """
    if not RESIZED:
        return sigmoid(
            interpolated(logits, columns, q, y, x, height, width, input_height, input_width)
        )
    top, bottom, weight_y = neighbours(y, image_height, result_height)
    left, right, weight_x = neighbours(x, image_width, result_width)
    total = tl.zeros([y.shape[0], q.shape[0]], tl.float32)
    # Unrolled, the loop would keep the places of 16 logits in registers.
    for corner in range(4):
        lower, righter = corner >= 2, corner % 2 == 1
        weight = tl.where(lower, weight_y, 1.0 - weight_y)
        weight *= tl.where(righter, weight_x, 1.0 - weight_x)
        value = interpolated(
            logits,
            columns,
            q,
            tl.where(lower, bottom, top),
            tl.where(righter, right, left),
            height,
            width,
            input_height,
            input_width,
        )
        total += weight[:, None] * (value if RESIZE_LOGITS else sigmoid(value))
    return sigmoid(total) if RESIZE_LOGITS else total
