"""Device functions that several kernels share: elementwise terms, counts of segments, tiles."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from mfkernels.triton import devices
from mfkernels.triton.launcher import power_of_2

ASSEMBLY = tl.constexpr(devices.ASSEMBLY)
MINUS_LOG2_E = tl.constexpr(-1.4426950408889634)


@triton.jit
def if_also(mask, condition):
    """`mask & condition`, for a scalar condition.

    With `&`, the interpreter would broadcast the condition as int32, and Triton 3.9 rejects such a
    mask.
    """
    return tl.where(condition, mask, False)


@triton.jit
def assembly(x, TEXT: tl.constexpr, PURE: tl.constexpr = True):
    """Apply a PTX instruction to each float32 element: `$1` is the operand, `$0` the result."""
    return tl.inline_asm_elementwise(TEXT, "=f,f", [x], dtype=tl.float32, is_pure=PURE, pack=1)


@triton.jit
def plain(number):
    """Decode a number that `unspecialized` has encoded."""
    return (number - 3) >> 1


@triton.jit
def exp2(x):
    """2^x in one instruction; denormal results (below 2⁻¹²⁶) are flushed to 0.

    `tl.exp2` scales its argument and result to keep them, which takes four more instructions.
    """
    if ASSEMBLY:
        return assembly(x, "ex2.approx.ftz.f32 $0, $1;")
    return tl.exp2(x)


@triton.jit
def from_lane_before(x):
    """The element of `x` that the previous lane of the warp holds; lane 0 gets its own.

    `x` must have one element per thread.
    """
    if ASSEMBLY:
        return assembly(x, "shfl.sync.up.b32 $0, $1, 1, 0, -1;", PURE=False)
    element = tl.arange(0, x.shape[0])
    return tl.gather(x, tl.where(element % 32 == 0, element, element - 1), 0)


@triton.jit
def exp_of_negative(x):
    """exp(x) for x ≤ 0."""
    if ASSEMBLY:
        return exp2(x * -MINUS_LOG2_E)
    return tl.exp(x)


@triton.jit
def reciprocal(x):
    """1 / x to one unit in the last place; x must not be denormal."""
    if ASSEMBLY:
        return assembly(x, "rcp.approx.ftz.f32 $0, $1;")
    return 1.0 / x


@triton.jit
def log1p_of_fraction(e):
    """log(1 + e) for e in [0, 1], to 1.5 units in the last place (minimax polynomial of degree 8).

    The hardware logarithm has a large relative error near log(1) = 0, where the loss of confident
    pixels is.
    """
    p = tl.full(e.shape, 0.00523265591, tl.float32)
    p = p * e - 0.0295050871
    p = p * e + 0.0782257095
    p = p * e - 0.136632249
    p = p * e + 0.191059977
    p = p * e - 0.248429805
    p = p * e + 0.333190978
    p = p * e - 0.499994934
    p = p * e + 0.99999994
    return p * e


@triton.jit
def minus_log2_of_rest(q):
    """−log₂(1 − q) for q in [0, 0.5], to 2 units in the last place (minimax polynomial, degree 8).

    For q = min(sigmoid(x), sigmoid(−x)) it is log₂(1 + exp(−|x|)).
    """
    p = tl.full(q.shape, 1.70949495, tl.float32)
    p = p * q - 1.56033254
    p = p * q + 1.13313687
    p = p * q + 0.0548488125
    p = p * q + 0.392774403
    p = p * q + 0.478776574
    p = p * q + 0.72140026
    p = p * q + 1.44269478
    return p * q


@triton.jit
def sigmoid_both(x):
    """sigmoid(x), sigmoid(-x) and log(1 + exp(-|x|)), each without cancellation."""
    e = exp_of_negative(-tl.abs(x))
    large = reciprocal(1.0 + e)
    small = e * large
    positive = x >= 0
    return tl.where(positive, large, small), tl.where(positive, small, large), log1p_of_fraction(e)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(−x)); 0 below −87, where the exponential overflows."""
    return reciprocal(1.0 + exp2(x * MINUS_LOG2_E))


@triton.jit
def neighbours(position, size, resized):
    """The two source elements of an output position of bilinear interpolation along one axis.

    Interpolates from `size` to `resized` elements with `align_corners=False`. Returns the indices
    of both elements and the weight of the second, computed in float32 as in PyTorch.
    """
    step = tl.div_rn(size.to(tl.float32), resized.to(tl.float32))
    source = tl.maximum((position.to(tl.float32) + 0.5) * step - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), source - first.to(tl.float32)


MANY_IMAGES = tl.constexpr(64)


def images_at_once(images: int) -> int:
    """The block size of `segments_of_image`: all images, if they are not many."""
    return min(power_of_2(images), MANY_IMAGES.value)


@triton.jit
def clamped(counts, most):
    """Clamp numbers of segments to 0..`most`: the host cannot check them without waiting."""
    return tl.minimum(tl.maximum(counts.to(tl.int32), 0), most)


@triton.jit
def segments_of_image(counts_ptr, image, max_count, num_segments, BLOCK_B: tl.constexpr):
    """The number of segments of an image, and the index of its first segment in the batch.

    Whatever the counts in memory are, there are at most `max_count` segments, and all of them are
    among the `num_segments` of the batch.
    """
    count = clamped(tl.load(counts_ptr + image), max_count)
    earlier = tl.arange(0, BLOCK_B)
    before = clamped(tl.load(counts_ptr + earlier, mask=earlier < image, other=0), max_count)
    if BLOCK_B == MANY_IMAGES:
        for _ in range(BLOCK_B, image, BLOCK_B):
            earlier += BLOCK_B
            more = tl.load(counts_ptr + earlier, mask=earlier < image, other=0)
            before += clamped(more, max_count)
    count = tl.minimum(count, num_segments)
    return count, tl.minimum(tl.sum(before), num_segments - count)


@triton.jit
def row_offset(layer, image, query, predictions):
    """The offset of a query's embedding in `[L, B, Q, C]`, or of its logits `[L, B, Q, h, w]`."""
    offset = (
        layer.to(tl.int64) * predictions.layer_stride
        + image.to(tl.int64) * predictions.image_stride
    )
    return offset + query.to(tl.int64) * predictions.query_stride


@triton.jit
def load_tile(row_ptr, column, stride, is_row, is_column):
    """Load a tile `[rows, columns]` of a matrix; 0 outside the matrix.

    `row_ptr`: the beginning of each row; `stride`: elements between adjacent columns.
    """
    return tl.load(
        row_ptr[:, None] + column.to(tl.int64)[None, :] * stride,
        mask=is_row[:, None] & is_column[None, :],
        other=0.0,
    )


@triton.jit
def store_columns(line_ptr, element, columns, is_line, is_element):
    """Store a tile `[elements, lines]` transposed: each column as adjacent elements of a line."""
    tl.store(
        line_ptr[None, :] + element[:, None],
        columns,
        mask=is_line[None, :] & is_element[:, None],
    )


@triton.jit
def dice_loss(both, sigmoid, target):
    """The dice loss, from the sums over pixels of s y, s and y (s = sigmoid(logit), y = target)."""
    return 1.0 - (2.0 * both + 1.0) / (sigmoid + target + 1.0)


@triton.jit
def store_sums(sums_ptr, index, both, sigmoid, target):
    """Store the three sums of the dice loss of one row in `sums [..., 3]`."""
    tl.store(sums_ptr + index * 3, both)
    tl.store(sums_ptr + index * 3 + 1, sigmoid)
    tl.store(sums_ptr + index * 3 + 2, target)


@triton.jit
def leading_bits(x):
    """`x` truncated to the precision of bfloat16, in one instruction."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """Three bfloat16 tensors whose sum is the float32 tensor `x`."""
    leading = leading_bits(x)
    remainder = x - leading
    middle = leading_bits(remainder)
    return leading.to(tl.bfloat16), middle.to(tl.bfloat16), (remainder - middle).to(tl.bfloat16)


@triton.jit
def log2(x):
    """log₂(x) in one instruction, with a relative error of 2⁻²², or an absolute one near x = 1.

    x must not be denormal.
    """
    if ASSEMBLY:
        return assembly(x, "lg2.approx.ftz.f32 $0, $1;")
    return tl.log2(x)


@triton.jit
def reciprocal_of_pairs(x):
    """1 / x for `[rows, columns]`, 1 ≤ x ≤ 2⁶²: one hardware reciprocal for two columns."""
    first, second = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    both = reciprocal(first * second)
    return tl.reshape(tl.join(both * second, both * first), x.shape)


@triton.jit
def tf32_parts(x):
    """Split `x` into two float32 tensors: the leading 11 bits, which TF32 holds, and the remainder.

    Of the remainder's 13 bits, a tensor core reads 11.
    """
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "and.b32 $0, $2, 0xffffe000; sub.rn.f32 $1, $2, $0;",
            "=&f,=f,f",
            [x],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    leading = (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    return leading, x - leading


@triton.jit
def scale_to_half(largest):
    """The power of 2 that scales `largest` ≥ 0 into [2¹⁴, 2¹⁵), and its inverse.

    Both are normal numbers, so very small values stay below that range; infinity stays infinite.
    """
    exponent = tl.minimum(tl.maximum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 1), 253)
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    return scale, ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def halves(x, BITS: tl.constexpr):
    """Split a float32 tensor `x`, |x| < 2¹⁵, into two float16 tensors that hold `BITS` + 11 bits.

    The first one is rounded to `BITS` bits; with fewer than 11, sums of products are nearly exact.
    """
    UNIT: tl.constexpr = 1 << (24 - BITS)
    bits = x.to(tl.int32, bitcast=True)
    # Do not round a NaN, whose bits may become those of a number.
    rounded = tl.where(x == x, (bits + UNIT // 2) & -UNIT, bits)
    leading = rounded.to(tl.float32, bitcast=True).to(tl.float16)
    return leading, (x - leading.to(tl.float32)).to(tl.float16)


@triton.jit
def alternate_runs(x, RUN: tl.constexpr):
    """Split a matrix whose columns are runs of two matrices in turn into these two matrices."""
    R: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1] // 2
    runs = tl.permute(tl.reshape(x, [R, C // RUN, 2, RUN]), [0, 1, 3, 2])
    first, second = tl.split(runs)
    return tl.reshape(first, [R, C]), tl.reshape(second, [R, C])
