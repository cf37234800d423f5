"""Mask logits of selected queries in a given order, and their values at pixels of a result.

Inference reads the same low-resolution logits for many pixels, and those of all queries together.
They are therefore stored by pixel, with one column per query, padded to whole chunks.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfkernels.triton import devices, launcher
from mfkernels.triton.arguments import Features, Predictions, Product
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.math import MINUS_LOG2_E, if_also, neighbours, sigmoid, split
from mfkernels.triton.tensors import with_flat_pixels

CHUNK = 32
"""The number of queries that a program processes at a time."""


class Block(NamedTuple):
    """Block sizes."""

    pixels: int
    queries: int
    channels: int


class Columns(NamedTuple):
    """The number of columns with padding, and without (which is not used with an order)."""

    total: int
    queries: int


class Layout(NamedTuple):
    """The cases that the kernels of this file are specialised for.

    `ordered`: the queries of the columns are given by `order [columns]`, −1 for none. `in_parts`:
    logits are multiplied by −log2(e) and stored as `[h·w, 2, columns]` float16, leading and
    trailing parts; otherwise as `[h·w, columns]` float32. `parts`: the number of bfloat16 parts
    that the factors are split into; 1: they are used as they are.
    """

    ordered: bool
    in_parts: bool
    parts: int


@triton.jit
def query_of(column, order_ptr, columns, LAYOUT: tl.constexpr):
    """The query of each column, −1 for none."""
    if LAYOUT.ordered:
        query = tl.load(order_ptr + column, mask=column < columns.total, other=-1)
    else:
        query = tl.where(column < columns.queries, column, -1)
    return query


@triton.jit
def embed_kernel(
    embed,
    order_ptr,
    embed_parts_ptr,
    columns,
    channels,
    padded_channels,
    LAYOUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`embed_parts [parts, columns, padded channels]`: the embedding of each column, or zeros.

    It is copied as it is, or split into a sum of bfloat16 numbers.
    """
    column = tl.program_id(0)
    query = query_of(column, order_ptr, columns, LAYOUT)
    plane = columns.total * padded_channels
    for start in range(0, padded_channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        e = tl.load(
            embed.ptr
            + query.to(tl.int64) * embed.query_stride
            + c.to(tl.int64) * embed.channel_stride,
            mask=if_also(c < channels, query >= 0),
            other=0.0,
        )
        part_ptr = embed_parts_ptr + column * padded_channels + c
        mask = c < padded_channels
        if LAYOUT.parts == 1:
            tl.store(part_ptr, e, mask=mask)
        else:
            leading, middle, trailing = split(e.to(tl.float32))
            tl.store(part_ptr, leading, mask=mask)
            tl.store(part_ptr + plane, middle, mask=mask)
            if LAYOUT.parts == 3:
                tl.store(part_ptr + 2 * plane, trailing, mask=mask)


@triton.jit
def add_product(total, small, f, part_ptr, plane, PARTS: tl.constexpr):
    """Add the product of features `[P, C]` and embeddings `[C, Q]` to `total` and `small`.

    `part_ptr` points to the first part of the embeddings. The products of smaller parts have a sum
    of their own, because tensor cores truncate sums, which would lose them.
    """
    leading_e = tl.load(part_ptr)
    if PARTS == 1:
        f = f.to(leading_e.dtype)
    else:
        leading, middle, trailing = split(f.to(tl.float32))
        middle_e = tl.load(part_ptr + plane)
        if PARTS == 3:
            trailing_e = tl.load(part_ptr + 2 * plane)
            small = tl.dot(leading, trailing_e, small)
            small = tl.dot(trailing, leading_e, small)
            small = tl.dot(middle, middle_e, small)
        small = tl.dot(middle, leading_e, small)
        small = tl.dot(leading, middle_e, small)
        f = leading
    return tl.dot(f, leading_e, total, input_precision="ieee"), small


@triton.jit
def store_logits(logits_ptr, x, p, column, columns, pixels, IN_PARTS: tl.constexpr):
    stride = 2 * columns if IN_PARTS else columns
    offset = p[:, None] * stride + column[None, :]
    mask = (p < pixels)[:, None] & (column < columns)[None, :]
    if IN_PARTS:
        # Clamp to the range of half precision; the sigmoid is 0 or 1 long before.
        x = tl.minimum(tl.maximum(x * MINUS_LOG2_E, -30000.0), 30000.0)
        leading = x.to(tl.float16)
        tl.store(logits_ptr + offset, leading, mask=mask)
        trailing = (x - leading.to(tl.float32)).to(tl.float16)
        tl.store(logits_ptr + offset + columns, trailing, mask=mask)
    else:
        tl.store(logits_ptr + offset, x, mask=mask)


@triton.jit
def by_pixel_kernel(
    embed_parts_ptr,
    features,
    order_ptr,
    logits_ptr,
    columns,
    channels,
    padded_channels,
    pixels,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The logits of each column at each mask pixel, 0 without a query; see `Layout`."""
    BLOCK_P: tl.constexpr = BLOCK.pixels
    BLOCK_Q: tl.constexpr = BLOCK.queries
    # Programs of the same pixels are adjacent, so that they share the features in the cache.
    blocks = tl.cdiv(columns.total, BLOCK_Q)
    column = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    p = ((tl.program_id(0) // blocks) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    x = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    small = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    # Columns beyond the last one read the last one, and are not stored.
    row_ptr = embed_parts_ptr + tl.minimum(column, columns.total - 1) * padded_channels
    for start in range(0, padded_channels, BLOCK.channels):
        c = start + tl.arange(0, BLOCK.channels)
        f = tl.load(
            features.ptr
            + p[:, None] * features.pixel_stride
            + c.to(tl.int64)[None, :] * features.channel_stride,
            mask=(p < pixels)[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        part_ptr = row_ptr[None, :] + c[:, None]
        plane = columns.total * padded_channels
        x, small = add_product(x, small, f, part_ptr, plane, LAYOUT.parts)
    x += small
    # A logit that is not finite means "not in the mask" (docs/not_finite.md). With infinite
    # features, even a column without a query would be NaN; its logits must be 0.
    query = query_of(column, order_ptr, columns, LAYOUT)
    replacement = tl.where(query >= 0, -1e30, 0.0)
    x = tl.where(((query >= 0)[None, :]) & (tl.abs(x) < float("inf")), x, replacement[None, :])
    store_logits(logits_ptr, x, p, column, columns.total, pixels, LAYOUT.in_parts)


@triton.jit
def transpose_kernel(
    masks, order_ptr, logits_ptr, columns, pixels, LAYOUT: tl.constexpr, BLOCK: tl.constexpr
):
    """As `by_pixel_kernel`, from dense logits `[Q, h·w]`."""
    BLOCK_P: tl.constexpr = BLOCK.pixels
    BLOCK_Q: tl.constexpr = BLOCK.queries
    column = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    p = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    query = query_of(column, order_ptr, columns, LAYOUT)
    x = tl.load(
        masks.ptr
        + (query.to(tl.int64) * masks.query_stride)[None, :]
        + p[:, None] * masks.pixel_stride,
        mask=(query >= 0)[None, :] & (p < pixels)[:, None],
        other=0.0,
    )
    x = x.to(tl.float32)
    x = tl.where(x == x, x, -1e30)
    x = tl.minimum(tl.maximum(x, -1e30), 1e30)  # a weight of zero times infinity would be NaN
    store_logits(logits_ptr, x, p, column, columns.total, pixels, LAYOUT.in_parts)


def columns_of(queries: int, block: int = CHUNK) -> int:
    """The number of columns for the queries: rounded up to whole blocks, at least one."""
    return max(cdiv(queries, block), 1) * block


BY_PIXEL = {
    "half": (Block(64, 128, 64), {"num_warps": 4, "num_stages": 3}),
    "float": (Block(64, 64, 32), {"num_warps": 4, "num_stages": 3}),
    "tensor memory": (Block(64, 64, 32), {"num_warps": 4, "num_stages": 2}),
    "in registers": (Block(32, 64, 32), {"num_warps": 8, "num_stages": 1}),
}
"""Block sizes and launch options: for factors in half precision; for float32; for float32 on GPUs
with tensor memory; and without matrix units."""


def _parts_of(embed: Tensor, features: Tensor) -> tuple[int, torch.dtype]:
    """The number of parts that factors are split into, and their dtype.

    Factors of one half precision are used as they are. Three parts in bfloat16 hold float32; two
    are more exact than TF32. Without matrix units for bfloat16, factors stay in float32.
    """
    product = Product.of(embed, features)
    if product.half:
        return 1, embed.dtype
    if not devices.gpu_of(embed.device).generation.bfloat16:
        return 1, torch.float32
    return 2 if product.tf32 else 3, torch.bfloat16


def logits_by_pixel(
    mask_embed: Tensor, pixel_features: Tensor | None, order: Tensor | None, logits: Tensor
) -> None:
    """Fill `logits` for the queries `order [columns]` (−1: none), or for all queries in sequence.

    Takes `mask_embed [Q, C]` and `pixel_features [C, h, w]`, or dense logits `[Q, h, w]` and None.
    `logits` is `[h·w, columns]` float32, or `[h·w, 2, columns]` float16 in two parts; see `Layout`.
    """
    pixels, columns = logits.shape[0], Columns(logits.shape[-1], mask_embed.shape[0])
    in_parts, given_order = logits.ndim == 3, logits if order is None else order
    if pixel_features is None:
        block = Block(pixels=64, queries=32, channels=1)
        launcher.launch(
            transpose_kernel,
            (cdiv(pixels, block.pixels), cdiv(columns.total, block.queries)),
            masks=Predictions.of(with_flat_pixels(mask_embed), dense=True),
            order_ptr=given_order,
            logits_ptr=logits,
            columns=columns,
            pixels=pixels,
            LAYOUT=Layout(order is not None, in_parts, 1),
            BLOCK=block,
            num_warps=4,
        )
        return
    features = with_flat_pixels(pixel_features)
    parts, dtype = _parts_of(mask_embed, features)
    layout = Layout(order is not None, in_parts, parts)
    channels = mask_embed.shape[1]
    padded_channels = cdiv(channels, 64) * 64
    embed_parts = mask_embed.new_empty((parts, columns.total, padded_channels), dtype=dtype)
    launcher.launch(
        embed_kernel,
        (columns.total,),
        embed=Predictions.of(mask_embed, dense=False),
        order_ptr=given_order,
        embed_parts_ptr=embed_parts,
        columns=columns,
        channels=channels,
        padded_channels=padded_channels,
        LAYOUT=layout,
        BLOCK_C=256,
        num_warps=4,
    )
    factors = devices.gpu_of(features.device).generation.factors
    form = "half" if parts == 1 else "tensor memory" if factors == "tensor memory" else "float"
    if factors is None:
        form = "in registers"
    block, options = BY_PIXEL[form]
    launcher.launch(
        by_pixel_kernel,
        (cdiv(pixels, block.pixels) * cdiv(columns.total, block.queries),),
        embed_parts_ptr=embed_parts,
        features=Features.of(features),
        order_ptr=given_order,
        logits_ptr=logits,
        columns=columns,
        channels=channels,
        padded_channels=padded_channels,
        pixels=pixels,
        LAYOUT=layout,
        BLOCK=block,
        **options,
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
    """Sigmoids `[P, queries]` of mask logits at pixels (y, x) of the result.

    Logits are interpolated to the input, of which the image is the upper left part. If the result
    has another size (RESIZED), they are interpolated again, as logits (RESIZE_LOGITS) or after the
    sigmoid.
    """
    if not RESIZED:
        return sigmoid(interpolated(logits_ptr, columns, q, y, x, vertical, horizontal))
    top, bottom, weight_y = neighbours(y, vertical.image, vertical.result)
    left, right, weight_x = neighbours(x, horizontal.image, horizontal.result)
    total = tl.zeros([y.shape[0], q.shape[0]], tl.float32)
    # Not unrolled: that would keep the addresses of 16 logits in registers.
    for corner in range(4):
        is_lower, is_right = corner >= 2, corner % 2 == 1
        weight = tl.where(is_lower, weight_y, 1.0 - weight_y)
        weight *= tl.where(is_right, weight_x, 1.0 - weight_x)
        corner_y = tl.where(is_lower, bottom, top)
        corner_x = tl.where(is_right, right, left)
        value = interpolated(logits_ptr, columns, q, corner_y, corner_x, vertical, horizontal)
        total += weight[:, None] * (value if RESIZE_LOGITS else sigmoid(value))
    return sigmoid(total) if RESIZE_LOGITS else total
