"""Sigmoids of masks at the pixels of a tile, interpolated on tensor cores.

A tile of the result reads few mask pixels, its patch. Interpolation is then a product: of the
weight that each mask pixel has at each pixel of the tile, and the patch's logits of all queries.
Weights and logits are split in two half-precision parts each, so that it is as exact as float32.
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
"""Of sigmoids and probabilities in half precision: their trailing parts are no denormal numbers."""


class Tile(NamedTuple):
    """Pixels of the result that a program takes; the first tile begins `up` and `left` outside."""

    height: int
    width: int
    up: int
    left: int


class Patch(NamedTuple):
    """Mask pixels of a tile: `size` of them, in rows of `width`. Of size 0: not used.

    `exact`: the weights are exact in half precision.
    """

    size: int
    width: int
    exact: bool


class Variant(NamedTuple):
    """What the semantic kernel is compiled for."""

    resized: bool
    """The input is resized to the result."""
    resize_logits: bool
    """If so, as logits, and not as their sigmoids."""
    scores: bool
    at_once: bool
    """All queries are of one view and handled at once: their sigmoids are computed only once."""
    classes: int
    """At a time."""


@triton.jit
def corner_of_tile(TILE: tl.constexpr):
    """Row and column of the first pixel of this program's tile; may be outside."""
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
    """Where among `size` elements bilinear interpolation reads for one of the resized ones.

    In float32, as PyTorch does it: between the element of its integer part and the next one.
    """
    source = tl.maximum((position.to(tl.float32) + 0.5) * step - 0.5, 0.0)
    return tl.minimum(source, tl.cast(size - 1, tl.float32))


@triton.jit
def weight_at(distance):
    """Of an element in bilinear interpolation: 1 − |distance|, not below 0."""
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
    """Float32 in half precision, and what this lacks."""
    rounded = x.to(tl.float16)
    return rounded, (x - rounded.to(tl.float32)).to(tl.float16)


@triton.constexpr_function
def size_of(pieces, piece):
    """Of a piece, as a constant of which Triton 3.6 makes a shape, too."""
    return pieces[piece]


@triton.constexpr_function
def before(pieces, piece):
    """The sum of the pieces before one."""
    return sum(pieces[:piece])


@triton.jit
def cells_of_patch(top, left, PATCH: tl.constexpr):
    """Row and column in the mask of each cell of the patch that begins there; may be outside."""
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
    """Logits `[size, piece]` of each piece of the queries from `first`: both their parts."""
    row, column = cells_of_patch(top, left, PATCH)
    row, column = (
        tl.minimum(row, view.mask_height - 1),
        tl.minimum(column, view.mask_width - 1),
    )
    cell_ptr = logits_ptr + (row * view.mask_width + column).to(tl.int64) * (2 * columns)
    leading, trailing = (), ()
    # All before they are used: they are on their way at the same time.
    for piece in tl.static_range(len(PIECES)):
        q = first + before(PIECES, piece) + tl.arange(0, PIECES[piece])
        part_ptr = cell_ptr[:, None] + q[None, :]
        leading += (tl.load(part_ptr),)
        trailing += (tl.load(part_ptr + columns),)
    return leading, trailing


@triton.jit
def patch_weights(y, x, top, left, view, PATCH: tl.constexpr):
    """The weight `[P, size]` that each cell of the patch has at pixels `y, x [P]` of the input."""
    row, column = cells_of_patch(top, left, PATCH)
    y = source_position(y, view.mask_step_y, view.mask_height)
    x = source_position(x, view.mask_step_x, view.mask_width)
    weight = weight_at(y[:, None] - row.to(tl.float32)[None, :])
    return weight * weight_at(x[:, None] - column.to(tl.float32)[None, :])


@triton.jit
def corner_of(corner, y, x, sizes, view):
    """A pixel of the image from which one of the result is interpolated, and its weight: `[P]`.

    `corner`: 0 to 3, row by row.
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
def interpolate(weight, lacking, leading, trailing, PATCH: tl.constexpr):
    """Logits `[P, piece]` by the weights and the logits of the patch, each in two parts."""
    logits = tl.dot(weight, trailing)
    if not PATCH.exact:
        logits = tl.dot(lacking, leading, logits)
    return tl.dot(weight, leading, logits)


@triton.jit
def sigmoids(weight, leading, trailing, PATCH: tl.constexpr, PIECES: tl.constexpr):
    """Sigmoids `[P, piece]` times SCALE of logits that are interpolated by weights `[P, size]`."""
    rounded, lacking = halves(weight)
    values = ()
    for piece in tl.static_range(len(PIECES)):
        logits = interpolate(rounded, lacking, leading[piece], trailing[piece], PATCH)
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
    """The same at the four pixels of the input around each pixel `y, x [P]`, interpolated."""
    PIXELS: tl.constexpr = y.shape[0]
    values = ()
    for piece in tl.static_range(len(PIECES)):
        values += (tl.zeros([PIXELS, size_of(PIECES, piece)], tl.float32),)
    # Unrolled, the loop would keep the weights of all corners in registers.
    for corner in range(4):
        corner_y, corner_x, share = corner_of(corner, y, x, sizes, view)
        weight = patch_weights(corner_y, corner_x, top, left, view, PATCH)
        rounded, lacking = halves(weight)
        sums = ()
        for piece in tl.static_range(len(PIECES)):
            logits = interpolate(rounded, lacking, leading[piece], trailing[piece], PATCH)
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
    """Sigmoids `[P, piece]` times SCALE at the pixels of the tile, by its patch."""
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
        # Interpolating twice is interpolating once, by sums of products of weights.
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
    """Sigmoids `[P, piece]` times SCALE of each piece of the queries from `first`, in two parts.

    The leading parts, in half precision, and what these lack.
    """
    if PATCH.size > 0:
        values = patch_values(logits_ptr, view, columns, first, sizes, VARIANT, TILE, PATCH, PIECES)
    else:
        values = general_values(logits_ptr, view, columns, first, sizes, VARIANT, TILE, PIECES)
    leading = ()
    trailing = ()
    for piece in tl.static_range(len(PIECES)):
        part, lacking = halves(values[piece])
        leading += (part,)
        trailing += (lacking,)
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
    """Sigmoids `[P, piece]` times SCALE at the pixels of the tile, wherever their mask pixels lie.

    Slow, for results that are hardly larger than the mask.
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
