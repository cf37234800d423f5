"""Products of the mask loss: matched rows of the embeddings, or their slopes, and the features."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matched_rows(row, number, image, images, layers, queries, max_count, assignment):
    """Layer, segment, place in `[L, B, T]` and query of some rows of an image; query −1 for none.

    The rows of an image are its segments in the first layer, then those in the second, and so on.
    """
    known = (row >= 0) & (row < layers * number)
    number = tl.maximum(number, 1)
    layer, segment = row // number, row % number
    place = (layer.to(tl.int64) * images + image) * max_count + segment
    query = tl.load(assignment + place, mask=known, other=-1)
    return layer, segment, place, tl.where(query < queries, query, -1)


@triton.jit
def logits_kernel(
    embed,
    features,
    assignment,
    counts,
    logits,
    first_image,
    images,
    layers,
    queries,
    channels,
    pixels,
    max_count,
    embed_layer,
    embed_image,
    embed_query,
    embed_channel,
    features_image,
    features_channel,
    features_pixel,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`logits [L, group, T, h·w]` of matched segments; the rest is not written."""
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R < layers * number:
        layer, segment, _, query = matched_rows(
            row, number, image, images, layers, queries, max_count, assignment
        )
        matched = query >= 0
        start = embed + layer.to(tl.int64) * embed_layer + query * embed_query
        start += image.to(tl.int64) * embed_image
        features += image.to(tl.int64) * features_image
        p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        x = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
        for start_c in range(0, channels, BLOCK_C):
            c = start_c + tl.arange(0, BLOCK_C)
            e = tl.load(
                start[:, None] + c.to(tl.int64)[None, :] * embed_channel,
                mask=matched[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            f = tl.load(
                features
                + c.to(tl.int64)[:, None] * features_channel
                + p.to(tl.int64)[None, :] * features_pixel,
                mask=(c < channels)[:, None] & (p < pixels)[None, :],
                other=0.0,
            )
            if not HALF:
                e = e.to(tl.float32)
                f = f.to(tl.float32)
            x = tl.dot(e, f, x, input_precision=PRECISION)
        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        tl.store(
            logits + line[:, None] * pixels + p[None, :],
            x,
            mask=matched[:, None] & (p < pixels)[None, :],
        )


@triton.jit
def embed_kernel(
    slopes,
    features,
    assignment,
    counts,
    partial,
    first_image,
    images,
    layers,
    queries,
    channels,
    pixels,
    max_count,
    features_image,
    features_channel,
    features_pixel,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """`partial [stretches, L, B, T, C]`: slopes · featuresᵀ over PIXELS pixels."""
    channel_tiles = tl.cdiv(channels, BLOCK_C)
    row_tile = tl.program_id(1) // channel_tiles
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    if row_tile * BLOCK_R < layers * number:
        row = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
        layer, segment, place, query = matched_rows(
            row, number, image, images, layers, queries, max_count, assignment
        )
        matched = query >= 0
        c = (tl.program_id(1) % channel_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
        features += image.to(tl.int64) * features_image
        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        begin = tl.program_id(0) * PIXELS
        for start in range(begin, tl.minimum(begin + PIXELS, pixels), BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            slope = tl.load(
                slopes + line[:, None] * pixels + p[None, :],
                mask=matched[:, None] & (p < pixels)[None, :],
                other=0.0,
            )
            f = tl.load(
                features
                + p.to(tl.int64)[:, None] * features_pixel
                + c.to(tl.int64)[None, :] * features_channel,
                mask=(p < pixels)[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            total = tl.dot(slope, f.to(tl.float32), total, input_precision=PRECISION)
        places = tl.full([], layers, tl.int64) * images * max_count
        at = (tl.program_id(0) * places + place) * channels
        tl.store(
            partial + at[:, None] + c[None, :],
            total,
            mask=matched[:, None] & (c < channels)[None, :],
        )


@triton.jit
def embed_sum_kernel(
    partial,
    assignment,
    counts,
    grad_embed,
    layers,
    queries,
    channels,
    max_count,
    stretches,
    BLOCK_C: tl.constexpr,
):
    """`grad_embed [L, B, Q, C]`: the partial sums of the segments that each query is matched to."""
    layer, query = tl.program_id(0) // queries, tl.program_id(0) % queries
    image = tl.program_id(2)
    images = tl.num_programs(2)
    number = tl.load(counts + image).to(tl.int32)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    places = tl.full([], layers, tl.int64) * images * max_count
    line = layer.to(tl.int64) * images + image
    total = tl.zeros([BLOCK_C], tl.float32)
    for segment in range(number):
        place = line * max_count + segment
        if tl.load(assignment + place) == query:
            for stretch in range(stretches):
                at = (stretch * places + place) * channels
                total += tl.load(partial + at + c, mask=c < channels, other=0.0)
    tl.store(grad_embed + (line * queries + query) * channels + c, total, mask=c < channels)


@triton.jit
def features_kernel(
    slopes,
    embed,
    assignment,
    counts,
    grad_features,
    first_image,
    images,
    layers,
    queries,
    channels,
    pixels,
    max_count,
    embed_layer,
    embed_image,
    embed_query,
    embed_channel,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """`grad_features [B, C, h·w]`: embedᵀ · slopes over the rows of each image."""
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(0, layers * number, BLOCK_R):
        layer, segment, _, query = matched_rows(
            start + tl.arange(0, BLOCK_R),
            number,
            image,
            images,
            layers,
            queries,
            max_count,
            assignment,
        )
        matched = query >= 0
        at = embed + layer.to(tl.int64) * embed_layer + query * embed_query
        at += image.to(tl.int64) * embed_image
        e = tl.load(
            at[None, :] + c.to(tl.int64)[:, None] * embed_channel,
            mask=matched[None, :] & (c < channels)[:, None],
            other=0.0,
        )
        line = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
        slope = tl.load(
            slopes + line[:, None] * pixels + p[None, :],
            mask=matched[:, None] & (p < pixels)[None, :],
            other=0.0,
        )
        total = tl.dot(e.to(tl.float32), slope, total, input_precision=PRECISION)
    at = (image.to(tl.int64) * channels + c) * pixels
    tl.store(
        grad_features + at[:, None] + p[None, :],
        total,
        mask=(c < channels)[:, None] & (p < pixels)[None, :],
    )


@triton.jit
def scatter_kernel(
    slopes,
    assignment,
    counts,
    grad_logits,
    first_image,
    images,
    queries,
    pixels,
    max_count,
    BLOCK: tl.constexpr,
):
    """`grad_logits [L, B, Q, h·w]`: the slopes of the segments that each query is matched to."""
    layer, query = tl.program_id(1) // queries, tl.program_id(1) % queries
    local = tl.program_id(2)
    image = first_image + local
    number = tl.load(counts + image).to(tl.int32)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = layer.to(tl.int64) * images + image
    total = tl.zeros([BLOCK], tl.float32)
    for segment in range(number):
        if tl.load(assignment + line * max_count + segment) == query:
            at = (layer.to(tl.int64) * tl.num_programs(2) + local) * max_count + segment
            total += tl.load(slopes + at * pixels + p, mask=p < pixels, other=0.0)
    tl.store(grad_logits + (line * queries + query) * pixels + p, total, mask=p < pixels)
