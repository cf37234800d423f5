"""Products of float32 matrices on matrix units for 16-bit numbers.

A float32 number is the sum of three bfloat16 numbers, its planes, which have the same exponent
range. The product of two matrices is the sum of the products of their planes, each as fast as a
product in half precision. TF32 units are half as fast and, on Hopper, do not support the memory
layouts of most matrices here.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from mfkernels.triton import devices
from mfkernels.triton.math import ASSEMBLY
from mfkernels.triton.tensors import HALVES, tf32_allowed


class Planes(NamedTuple):
    """The numbers of planes of two factors, and which products of planes are computed.

    Without planes (0), factors are multiplied in float32.
    """

    a: int
    b: int
    order: int
    """The product of planes i and j (from 0) is computed if i + j is at most this."""

    @classmethod
    def of(
        cls,
        a: torch.dtype,
        b: torch.dtype,
        result: torch.dtype = torch.float32,
        *,
        device: torch.device,
    ) -> Planes:
        """Choose the planes: one if both factors have the same half precision, otherwise more.

        Two planes are used if the user allows TF32, which is at most as exact, or if the result is
        in half precision. Without matrix units for bfloat16, factors stay in float32.
        """
        if a == b == torch.float16:
            return cls(1, 1, 0)
        if not devices.gpu_of(device).generation.bfloat16:
            return cls(0, 0, 0)
        if a == b == torch.bfloat16:
            return cls(1, 1, 0)
        order = 1 if result in HALVES or tf32_allowed() else 2
        parts = {torch.bfloat16: 1, torch.float16: 2, torch.float32: order + 1}
        return cls(parts[a], parts[b], order)


# These convert two elements per instruction; Triton's conversion of single elements has a sixteenth
# of the throughput.
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


@triton.jit
def split(x, COUNT: tl.constexpr):
    """The planes of a matrix, with 8 bits each, rounded; a single plane is `x` unchanged.

    Always returns three tensors; those beyond `COUNT` are unused.
    """
    if COUNT == 1:
        first, second, third = x, x, x
    elif ASSEMBLY and COUNT == 2:
        first, second = tl.inline_asm_elementwise(
            _TWO_PLANES, "=&r,=&r,r,r", [x.to(tl.float32)], (tl.bfloat16, tl.bfloat16), True, 2
        )
        third = second
    elif ASSEMBLY:
        first, second, third = tl.inline_asm_elementwise(
            _THREE_PLANES,
            "=&r,=&r,=&r,r,r",
            [x.to(tl.float32)],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16),
            True,
            2,
        )
    else:
        rest = x.to(tl.float32)
        first = rest.to(tl.bfloat16)
        rest -= first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
    return first, second, third


@triton.jit
def add_product(a, b, total, PLANES: tl.constexpr):
    """`total` + a · b.

    Matrix units round sums towards zero at each step. For full float32 precision, small terms are
    therefore added first, and each step has its own sum, which is then added to the total.
    """
    if PLANES.a == 0:
        a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    elif PLANES.order == 0:
        total = tl.dot(a, b, total)
    else:
        a1, a2, a3 = split(a, PLANES.a)
        b1, b2, b3 = split(b, PLANES.b)
        part = tl.zeros(total.shape, tl.float32) if PLANES.order == 2 else total
        if PLANES.a > 2:
            part = tl.dot(a3, b1, part)
        if PLANES.b > 2:
            part = tl.dot(a1, b3, part)
        if PLANES.order == 2 and PLANES.a > 1 and PLANES.b > 1:
            part = tl.dot(a2, b2, part)
        if PLANES.a > 1:
            part = tl.dot(a2, b1, part)
        if PLANES.b > 1:
            part = tl.dot(a1, b2, part)
        part = tl.dot(a1, b1, part)
        total = total + part if PLANES.order == 2 else part
    return total
