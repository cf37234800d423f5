"""What several kernels share: elementwise terms, segments of an image, tiles of a matrix."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import os

import triton
import triton.language as tl

# The interpreter has no assembly; it takes the operations that these instructions stand for.
_ASSEMBLY = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") != "1")


@triton.jit
def if_also(mask, condition):
    """`mask & condition`, one condition for all elements.

    The interpreter would broadcast the condition as int32; Triton 3.9 refuses such a mask.
    """
    return tl.where(condition, mask, False)


@triton.jit
def exp2(x):
    """2^x in one instruction; results below 2⁻¹²⁶ are 0.

    Where they may be small, Triton's own scales up and down again, four instructions more.
    """
    if _ASSEMBLY:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def exp_of_negative(x):
    """exp(x) for x ≤ 0."""
    if _ASSEMBLY:
        return exp2(x * 1.4426950408889634)
    return tl.exp(x)


@triton.jit
def reciprocal(x):
    """1 / x to one unit in the last place, x not denormal."""
    if _ASSEMBLY:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def log1p_of_fraction(e):
    """log(1 + e) for e in [0, 1], to 1.5 units in the last place (least-maximum fit of degree 8).

    The hardware logarithm loses relative precision near 1, where well-learnt pixels are.
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
def power_of_sigmoid(sigmoid, softplus_of_minus, gamma, SQUARE: tl.constexpr):
    """sigmoid(x)^gamma, given also softplus(-x) = -log(sigmoid(x))."""
    if SQUARE:
        return sigmoid * sigmoid
    return exp_of_negative(-gamma * softplus_of_minus)


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
    return reciprocal(1.0 + exp2(x * -1.4426950408889634))


@triton.jit
def neighbours(position, size, resized):
    """What bilinear interpolation from `size` to `resized` elements reads for one of the latter.

    Index of the first and of the second element, and the weight of the second; in float32, as
    PyTorch does it.
    """
    step = tl.div_rn(size.to(tl.float32), resized.to(tl.float32))
    source = tl.maximum((position.to(tl.float32) + 0.5) * step - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), source - first.to(tl.float32)


@triton.jit
def segments_of_image(counts_ptr, image, BLOCK_B: tl.constexpr):
    """How many segments an image has, and the index of its first one among all."""
    count = tl.load(counts_ptr + image).to(tl.int32)
    before = tl.zeros([BLOCK_B], tl.int32)
    for start in range(0, image, BLOCK_B):
        earlier = start + tl.arange(0, BLOCK_B)
        before += tl.load(counts_ptr + earlier, mask=earlier < image, other=0).to(tl.int32)
    return count, tl.sum(before)


@triton.jit
def row_offset(layer, image, query, predictions):
    """Elements to a query's embedding in `[L, B, Q, C]`, or to its logits in `[L, B, Q, h, w]`."""
    offset = layer.to(tl.int64) * predictions.layer + image.to(tl.int64) * predictions.image
    return offset + query.to(tl.int64) * predictions.query


@triton.jit
def load_tile(row_ptr, column, stride, is_row, is_column):
    """`[rows, columns]` of a matrix, 0 where there is no such row or column.

    `row_ptr`: where each row begins; `stride`: elements between neighbouring columns.
    """
    return tl.load(
        row_ptr[:, None] + column.to(tl.int64)[None, :] * stride,
        mask=is_row[:, None] & is_column[None, :],
        other=0.0,
    )


@triton.jit
def store_columns(line_ptr, element, columns, is_line, is_element):
    """Store each column of a tile `[elements, lines]` as neighbouring elements of its line."""
    tl.store(
        line_ptr[None, :] + element[:, None],
        columns,
        mask=is_line[None, :] & is_element[:, None],
    )


@triton.jit
def leading_bits(x):
    """`x` with the precision of bfloat16, rounded towards zero: one instruction."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """Three bfloat16 tensors whose sum is the float32 tensor `x`."""
    leading = leading_bits(x)
    remainder = x - leading
    middle = leading_bits(remainder)
    return leading.to(tl.bfloat16), middle.to(tl.bfloat16), (remainder - middle).to(tl.bfloat16)


_TWO_PLANES = tl.constexpr("""{
    .reg .b32 a, b;
    cvt.rn.bf16x2.f32 $0, $3, $2;
    shl.b32 a, $0, 16;
    and.b32 b, $0, 0xffff0000;
    sub.f32 a, $2, a;
    sub.f32 b, $3, b;
    cvt.rn.bf16x2.f32 $1, b, a;
}""")
_THREE_PLANES = tl.constexpr("""{
    .reg .b32 a, b, c, d;
    cvt.rn.bf16x2.f32 $0, $4, $3;
    shl.b32 a, $0, 16;
    and.b32 b, $0, 0xffff0000;
    sub.f32 a, $3, a;
    sub.f32 b, $4, b;
    cvt.rn.bf16x2.f32 $1, b, a;
    shl.b32 c, $1, 16;
    and.b32 d, $1, 0xffff0000;
    sub.f32 a, a, c;
    sub.f32 b, b, d;
    cvt.rn.bf16x2.f32 $2, b, a;
}""")
_FP16_PLANES = tl.constexpr("""{
    .reg .b16 a, b;
    .reg .f32 c, d;
    cvt.rn.f16x2.f32 $0, $3, $2;
    mov.b32 {a, b}, $0;
    cvt.f32.f16 c, a;
    cvt.f32.f16 d, b;
    sub.f32 c, $2, c;
    sub.f32 d, $3, d;
    cvt.rn.f16x2.f32 $1, d, c;
}""")


@triton.jit
def planes(x, COUNT: tl.constexpr):
    """Up to three bfloat16 tensors whose sum is `x` to 8 bits each; one is `x` as it is.

    Two elements at a time, where Triton would convert one by one, at a sixteenth of the rate.
    """
    if COUNT == 1:
        return x, x, x
    elif _ASSEMBLY and COUNT == -2:
        first, second = tl.inline_asm_elementwise(
            _FP16_PLANES, "=&r,=&r,r,r", [x.to(tl.float32)], (tl.float16, tl.float16), True, 2
        )
        return first, second, second
    elif _ASSEMBLY and COUNT == 2:
        first, second = tl.inline_asm_elementwise(
            _TWO_PLANES, "=&r,=&r,r,r", [x.to(tl.float32)], (tl.bfloat16, tl.bfloat16), True, 2
        )
        return first, second, second
    elif _ASSEMBLY:
        first, second, third = tl.inline_asm_elementwise(
            _THREE_PLANES,
            "=&r,=&r,=&r,r,r",
            [x.to(tl.float32)],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16),
            True,
            2,
        )
        return first, second, third
    else:
        rest = x.to(tl.float32)
        first = rest.to(tl.bfloat16)
        rest -= first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        return first, second, (rest - second.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def add_product(a, b, total, trailing, PLANES: tl.constexpr):
    """Add a · b to the sum of two matrices, small terms first.

    Float32 needs `trailing`: apart, the small terms are not rounded to the precision of the others.
    """
    a1, a2, a3 = planes(a, PLANES.a)
    b1, b2, b3 = planes(b, PLANES.b)
    if PLANES.order == 2:
        if PLANES.a == 3:
            trailing = tl.dot(a3, b1, trailing)
        if PLANES.b == 3:
            trailing = tl.dot(a1, b3, trailing)
        if PLANES.a > 1 and PLANES.b > 1:
            trailing = tl.dot(a2, b2, trailing)
        if PLANES.a > 1:
            trailing = tl.dot(a2, b1, trailing)
        if PLANES.b > 1:
            trailing = tl.dot(a1, b2, trailing)
    if PLANES.order == 1:
        if PLANES.a != 1:
            total = tl.dot(a2, b1, total)
        if PLANES.b != 1:
            total = tl.dot(a1, b2, total)
    return tl.dot(a1, b1, total), trailing
