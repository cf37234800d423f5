"""Sigmoids of mask logits at the pixels of a tile, interpolated on tensor cores.

A tile of the result needs few mask pixels, its patch. Interpolation is then a matrix product: the
weights of the patch's pixels at the pixels of the tile, times the patch's logits of all queries.
Both factors are split into two half-precision parts, which makes it as exact as float32.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mfkernels.ops.segmentation.triton_logits_by_pixel import mask_values
from mfkernels.triton.arguments import MaskAxis
from mfkernels.triton.math import ASSEMBLY, assembly, exp2, reciprocal

SCALE = tl.constexpr(1024.0)
"""The scale of sigmoids and probabilities in half precision, so that their trailing parts are not
denormal."""


class Tile(NamedTuple):
    """A program's pixels of the result; the first tile begins `up` and `left` pixels outside it."""

    height: int
    width: int
    up: int
    left: int


class Patch(NamedTuple):
    """The mask pixels that a tile needs: `size` of them, in rows of `width`; size 0: not used.

    `exact`: the interpolation weights are exact in half precision.
    """

    size: int
    width: int
    exact: bool


class Variant(NamedTuple):
    """The cases that the semantic kernel is specialised for."""

    resized: bool
    """The image has another size than the result, and is resized to it."""
    resize_logits: bool
    """If so, resize the logits, not their sigmoids."""
    scores: bool
    at_once: bool
    """There is a single view whose queries all fit the registers, so that their sigmoids are
    computed only once and not for each block of classes."""
    classes: int
    """The block size of classes."""


@triton.jit
def corner_of_tile(TILE: tl.constexpr):
    """Row and column of the first pixel of this program's tile; may be outside the result."""
    return tl.program_id(1) * TILE.height - TILE.up, tl.program_id(0) * TILE.width - TILE.left


@triton.jit
def pixels_of_tile(height, width, TILE: tl.constexpr):
    """Row and column of each pixel of this program's tile, and whether it is inside."""
    top, left = corner_of_tile(TILE)
    p = tl.arange(0, TILE.height * TILE.width)
    y, x = top + p // TILE.width, left + p % TILE.width
    return y, x, (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def source_position(position, step, size):
    """The source coordinate of an output position in bilinear interpolation of `size` elements.

    It is computed in float32, as in PyTorch, and lies between the element of its integer part and
    the next one.
    """
    source = tl.maximum((position.to(tl.float32) + 0.5) * step - 0.5, 0.0)
    return tl.minimum(source, tl.cast(size - 1, tl.float32))


@triton.jit
def weight_at(distance):
    """The weight of an element in bilinear interpolation: max(0, 1 − |distance|)."""
    if ASSEMBLY:
        return assembly(
            distance, "{.reg .f32 a; abs.f32 a, $1; neg.f32 a, a; add.sat.f32 $0, a, 0f3F800000;}"
        )
    return tl.maximum(1.0 - tl.abs(distance), 0.0)


@triton.jit
def scaled_sigmoid(x):
    """SCALE / (1 + 2^x)."""
    return reciprocal(exp2(x) * (1.0 / SCALE) + 1.0 / SCALE)


@triton.jit
def halves(x):
    """Split float32 into a float16 tensor and its rounding error, also in float16."""
    rounded = x.to(tl.float16)
    return rounded, (x - rounded.to(tl.float32)).to(tl.float16)


@triton.constexpr_function
def size_of(pieces, piece):
    """The size of a piece, as a constant that Triton 3.6 accepts in a shape."""
    return pieces[piece]


@triton.constexpr_function
def before(pieces, piece):
    """The number of queries in the pieces before this one."""
    return sum(pieces[:piece])


@triton.jit
def cells_of_patch(top, left, PATCH: tl.constexpr):
    """Row and column in the mask of each pixel of the patch at (top, left); may be outside."""
    i = tl.arange(0, PATCH.size)
    return top + i // PATCH.width, left + i % PATCH.width


@triton.jit
def load_patch(
    logits_ptr,
    view,
    columns,
    first,
    top,
    left,
    PATCH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Both parts of the patch's logits, `[size, piece]` for each piece of queries from `first`."""
    row, column = cells_of_patch(top, left, PATCH)
    row, column = (
        tl.minimum(row, view.mask_height - 1),
        tl.minimum(column, view.mask_width - 1),
    )
    cell_ptr = logits_ptr + (row * view.mask_width + column).to(tl.int64) * (2 * columns)
    leading, trailing = (), ()
    # Issue all loads before their results are used, so that their latencies overlap.
    for piece in tl.static_range(len(PIECES)):
        q = first + before(PIECES, piece) + tl.arange(0, PIECES[piece])
        part_ptr = cell_ptr[:, None] + q[None, :]
        leading += (tl.load(part_ptr),)
        trailing += (tl.load(part_ptr + columns),)
    return leading, trailing


@triton.jit
def patch_weights(y, x, top, left, view, PATCH: tl.constexpr):
    """The weights `[P, size]` of the patch's pixels at pixels `y, x [P]` of the input."""
    row, column = cells_of_patch(top, left, PATCH)
    y = source_position(y, view.mask_step_y, view.mask_height)
    x = source_position(x, view.mask_step_x, view.mask_width)
    weight = weight_at(y[:, None] - row.to(tl.float32)[None, :])
    return weight * weight_at(x[:, None] - column.to(tl.float32)[None, :])


@triton.jit
def corner_of(corner, y, x, sizes, view):
    """One of the four image pixels that a pixel of the result is interpolated from, and its weight.

    All are `[P]`. `corner` is 0 to 3, row by row.
    """
    is_lower, is_right = corner >= 2, corner % 2 == 1
    y = source_position(y, view.image_step_y, view.image_height)
    x = source_position(x, view.image_step_x, view.image_width)
    top, left = y.to(tl.int32), x.to(tl.int32)
    weight_y, weight_x = y - top.to(tl.float32), x - left.to(tl.float32)
    weight = tl.where(is_lower, weight_y, 1.0 - weight_y)
    weight *= tl.where(is_right, weight_x, 1.0 - weight_x)
    bottom = tl.minimum(top + 1, view.image_height - 1)
    right = tl.minimum(left + 1, view.image_width - 1)
    return tl.where(is_lower, bottom, top), tl.where(is_right, right, left), weight


@triton.jit
def interpolate(weight, residual, leading, trailing, PATCH: tl.constexpr):
    """Logits `[P, piece]`: the product of the weights and the patch's logits, each in two parts."""
    logits = tl.dot(weight, trailing)
    if not PATCH.exact:
        logits = tl.dot(residual, leading, logits)
    return tl.dot(weight, leading, logits)


@triton.jit
def sigmoids(weight, leading, trailing, PATCH: tl.constexpr, PIECES: tl.constexpr):
    """Sigmoids `[P, piece]`, times SCALE, of logits interpolated with weights `[P, size]`."""
    rounded, residual = halves(weight)
    values = ()
    for piece in tl.static_range(len(PIECES)):
        logits = interpolate(rounded, residual, leading[piece], trailing[piece], PATCH)
        values += (scaled_sigmoid(logits),)
    return values


@triton.jit
def resized_sigmoids(
    leading,
    trailing,
    view,
    sizes,
    y,
    x,
    top,
    left,
    PATCH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Sigmoids `[P, piece]`, times SCALE, that are interpolated from those at pixels of the input.

    They are computed at the four pixels of the input around each pixel `y, x [P]` of the result.
    """
    PIXELS: tl.constexpr = y.shape[0]
    values = ()
    for piece in tl.static_range(len(PIECES)):
        values += (tl.zeros([PIXELS, size_of(PIECES, piece)], tl.float32),)
    # Not unrolled: that would keep the weights of all corners in registers.
    for corner in range(4):
        corner_y, corner_x, share = corner_of(corner, y, x, sizes, view)
        weight = patch_weights(corner_y, corner_x, top, left, view, PATCH)
        rounded, residual = halves(weight)
        sums = ()
        for piece in tl.static_range(len(PIECES)):
            logits = interpolate(rounded, residual, leading[piece], trailing[piece], PATCH)
            sums += (values[piece] + share[:, None] * scaled_sigmoid(logits),)
        values = sums
    return values


@triton.jit
def patch_values(
    logits_ptr,
    view,
    columns,
    first,
    sizes,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    PATCH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Sigmoids `[P, piece]`, times SCALE, at the pixels of the tile, computed from its patch."""
    PIXELS: tl.constexpr = TILE.height * TILE.width
    CELLS: tl.constexpr = PATCH.size
    y, x, _ = pixels_of_tile(sizes.height, sizes.width, TILE)
    top, left = corner_of_tile(TILE)
    flipped = view.flipped != 0
    x = tl.where(flipped, sizes.width - 1 - x, x)
    left = tl.where(flipped, sizes.width - TILE.width - left, left)
    if VARIANT.resized:
        top = source_position(top, view.image_step_y, view.image_height).to(tl.int32)
        left = source_position(left, view.image_step_x, view.image_width).to(tl.int32)
    top = source_position(top, view.mask_step_y, view.mask_height).to(tl.int32)
    left = source_position(left, view.mask_step_x, view.mask_width).to(tl.int32)
    leading, trailing = load_patch(logits_ptr, view, columns, first, top, left, PATCH, PIECES)
    if VARIANT.resized and not VARIANT.resize_logits:
        values = resized_sigmoids(leading, trailing, view, sizes, y, x, top, left, PATCH, PIECES)
    elif VARIANT.resized:
        # Interpolating twice equals interpolating once with the sums of the products of weights.
        weight = tl.zeros([PIXELS, CELLS], tl.float32)
        for corner in tl.static_range(4):
            corner_y, corner_x, share = corner_of(corner, y, x, sizes, view)
            at_corner = patch_weights(corner_y, corner_x, top, left, view, PATCH)
            weight += share[:, None] * at_corner
        values = sigmoids(weight, leading, trailing, PATCH, PIECES)
    else:
        weight = patch_weights(y, x, top, left, view, PATCH)
        values = sigmoids(weight, leading, trailing, PATCH, PIECES)
    return values


@triton.jit
def tile_values(
    logits_ptr,
    view,
    columns,
    first,
    sizes,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    PATCH: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Sigmoids `[P, piece]`, times SCALE, of each piece of queries from `first`.

    They are returned in two half-precision parts, leading and trailing.
    """
    if PATCH.size > 0:
        values = patch_values(logits_ptr, view, columns, first, sizes, VARIANT, TILE, PATCH, PIECES)
    else:
        values = general_values(logits_ptr, view, columns, first, sizes, VARIANT, TILE, PIECES)
    leading = ()
    trailing = ()
    for piece in tl.static_range(len(PIECES)):
        part, residual = halves(values[piece])
        leading += (part,)
        trailing += (residual,)
    return leading, trailing


@triton.jit
def general_values(
    logits_ptr,
    view,
    columns,
    first,
    sizes,
    VARIANT: tl.constexpr,
    TILE: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Sigmoids `[P, piece]`, times SCALE, at the pixels of the tile, without a patch.

    This is slow; it is used for results that are hardly larger than the mask, whose tiles need too
    many mask pixels for a patch.
    """
    y, x, _ = pixels_of_tile(sizes.height, sizes.width, TILE)
    x = tl.where(view.flipped != 0, sizes.width - 1 - x, x)
    vertical = MaskAxis(view.mask_height, view.input_height, view.image_height, sizes.height)
    horizontal = MaskAxis(view.mask_width, view.input_width, view.image_width, sizes.width)
    values = ()
    for piece in tl.static_range(len(PIECES)):
        q = first + before(PIECES, piece) + tl.arange(0, PIECES[piece])
        value = mask_values(
            logits_ptr,
            columns,
            q,
            y,
            x,
            vertical,
            horizontal,
            VARIANT.resized,
            VARIANT.resize_logits,
        )
        values += (value * SCALE,)
    return values
